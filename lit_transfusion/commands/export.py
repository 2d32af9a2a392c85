"""`export`: write the model of a checkpoint to a folder that can be shared."""

from pathlib import Path
from typing import Literal

from lit_transfusion.errors import InputError
from lit_transfusion.progress import reporting


def export(ckpt: str, output: str, weights: Literal["ema", "raw"] = "ema") -> None:
    """Write a folder with everything that generation needs, and nothing else of a run.

    It contains model.safetensors, config.json, the tokenizer, the codec's weights if it has any, and a model card.
    Use the folder with `generate --ckpt` or `Pipeline.from_pretrained`, or upload it to the Hugging Face hub.

    Args:
        ckpt: Checkpoint of a run: a file, or a folder of shards.
        output: The folder. Existing files with the same names are replaced, except the model card.
        weights: ema takes the averaged weights, if the checkpoint has them; raw takes the weights of the optimiser.
    """
    from lit_transfusion.generation.pipeline import Pipeline  # here, since it takes seconds, and --help is quick

    with reporting() as on_progress:
        on_progress(f"reading {ckpt}", 0, None)
        pipeline = Pipeline.from_pretrained(ckpt, ema=weights == "ema")
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output {output} cannot be created: {error.strerror}; use another folder") from None
        on_progress(f"writing {output}", 0, None)
        pipeline.save_pretrained(output)
    print(output)
