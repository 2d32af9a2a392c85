"""`playground`: a page in the browser to draw, describe, change and go on with a checkpoint."""

import os
from tempfile import TemporaryDirectory

from lit_transfusion.errors import InputError


def playground(
    ckpt: str, port: int = 7860, host: str = "127.0.0.1", device: str | None = None, ema: bool = True
) -> None:
    """Open a page for the browser: draw, describe a picture, change one, or let the model go on as it likes.

    The page asks nothing of any other machine. Ctrl-C closes it.

    Args:
        ckpt: Checkpoint of a run, such as runs/quickstart/checkpoints/last.ckpt; or a folder that `export` wrote, or
            its name on the Hugging Face hub.
        port: Port of the page; 0 takes one that is free.
        host: From where it can be reached: 127.0.0.1 from this machine alone, 0.0.0.0 from all that reach this machine.
            It has no password.
        device: cpu, cuda, cuda:1, …; null takes a GPU if there is one.
        ema: Use the averaged weights, if the checkpoint has them.
    """
    from lit_transfusion.generation.pipeline import open_pipeline  # here, since it takes seconds, and --help is quick

    with TemporaryDirectory(prefix="playground_", ignore_cleanup_errors=True) as folder:
        # Which gradio reads when it is imported. Pictures that are shown and uploaded are for nobody else to see.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        try:
            from lit_transfusion.commands.playground.page import build_page
            from lit_transfusion.commands.playground.server import listen, serve
        except ModuleNotFoundError as error:
            raise InputError(f'the playground needs {error.name}; pip install -e ".[playground]" installs it') from None

        listener = listen(host, port)  # before the checkpoint is read, which may take long
        page = build_page(open_pipeline(ckpt, device, ema), ckpt)
        print(f"http://{host}:{listener.getsockname()[1]} (Ctrl-C closes it)", flush=True)
        serve(page, listener)
