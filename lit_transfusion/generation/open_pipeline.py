"""Load a pipeline as the options of a command say."""

import torch

from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.hardware import has_bf16


def open_pipeline(
    ckpt: str, device: str | None, ema: bool = True, compile: bool = False, dtype: str = "float32"
) -> Pipeline:
    """Load the pipeline for the options of a command.

    Raises:
        InputError: The device does not exist, bf16 is asked for and the device has no bf16 arithmetic, or the
            checkpoint is invalid.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {str(error).splitlines()[0]}") from None
    if dtype == "bfloat16" and not has_bf16(torch.device(device)):
        raise InputError(f"--dtype bfloat16: {device} has no bf16 arithmetic, so it would be slow; use --dtype float32")
    pipeline = Pipeline.from_pretrained(ckpt, device=device, dtype=getattr(torch, dtype), ema=ema)
    if compile:
        pipeline.compile()
    return pipeline
