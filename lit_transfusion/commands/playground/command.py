"""`playground`: a web page to draw, describe, edit and continue with a checkpoint."""

import os
from tempfile import TemporaryDirectory

from lit_transfusion.errors import InputError


def playground(
    ckpt: str, port: int = 7860, host: str = "127.0.0.1", device: str | None = None, ema: bool = True
) -> None:
    """Open a web page to draw, describe a picture, edit one, or let the model choose text and pictures.

    The page makes no requests to other machines. Press Ctrl-C to close it.

    Args:
        ckpt: Checkpoint of a run, such as runs/quickstart/checkpoints/last.ckpt; or a folder that `export` wrote, or
            its name on the Hugging Face hub.
        port: Port of the page; 0 uses a free one.
        host: Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for every machine that can reach this one.
            There is no password.
        device: cpu, cuda, cuda:1, …; null uses a GPU if there is one.
        ema: Use the averaged weights, if the checkpoint has them.
    """
    from lit_transfusion.generation.open_pipeline import (
        open_pipeline,  # here, since it takes seconds, and --help is quick
    )

    with TemporaryDirectory(prefix="playground_", ignore_cleanup_errors=True) as folder:
        # gradio reads these when it is imported. The private folder hides shown and uploaded pictures from other users.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        try:
            from lit_transfusion.commands.playground.page import build_page
            from lit_transfusion.commands.playground.server import listen, serve
        except ModuleNotFoundError as error:
            raise InputError(f'the playground needs {error.name}: pip install -e ".[playground]"') from None

        listener = listen(host, port)  # first, since reading the checkpoint may take long
        page = build_page(open_pipeline(ckpt, device, ema), ckpt)
        print(f"http://{host}:{listener.getsockname()[1]} (Ctrl-C closes it)", flush=True)
        serve(page, listener)
