"""What a model takes from a checkpoint, and which checkpoints are refused it."""

from typing import Any

from torch import Tensor

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import KEY
from lit_transfusion.generation.pipeline import Pipeline, second_line
from lit_transfusion.model import Transfusion


def start_from(path: str, net: Transfusion, tokenizer: Tokenizer) -> None:
    """Copy the (averaged) weights of another run, or of a model that was exported, into `net`.

    Raises:
        InputError: It was trained with another tokenizer, or its weights do not fit.
    """
    other = Pipeline.from_pretrained(path)
    if other.tokenizer.model != tokenizer.model:
        raise InputError(
            f"model.init_from: {path} was trained with another tokenizer; "
            "set data.tokenizer_model to the tokenizer.model of its run"
        )
    try:
        net.load_state_dict(other.net.state_dict())
    except RuntimeError as error:
        raise InputError(f"model.init_from: {path} does not fit this model: {second_line(error)}") from None


def check_fits(checkpoint: dict[str, Any], weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Refuse to go on from a checkpoint, before anything is changed, that is not of a model like this one.

    Args:
        checkpoint: What Lightning has read.
        weights: The model's own, by the names that they have in checkpoints.
        tokenizer: The model's own.

    Raises:
        InputError: It is of another program, has another tokenizer, or weights of other names or shapes.
    """
    if KEY not in checkpoint:
        raise InputError(f"this is not a checkpoint of lit_transfusion: it has no {KEY!r} entry")
    if checkpoint[KEY]["tokenizer"] != tokenizer.model:
        raise InputError(
            "the checkpoint was trained with another tokenizer than this run's (or it was made of data that have "
            "changed since); set data.tokenizer_model to the tokenizer.model in the checkpoint's run directory"
        )
    theirs = checkpoint["state_dict"]
    bad = [name for name, weight in theirs.items() if weight.device.type != "meta" and not weight.isfinite().all()]
    if bad:
        raise InputError(
            f"the checkpoint's weight {bad[0]} holds NaN or infinite numbers, so the run has diverged; resume from an "
            "earlier checkpoint with --ckpt_path"
        )
    odd = [name for name in weights | theirs if shape_of(weights, name) != shape_of(theirs, name)]
    if odd:
        name = odd[0]
        raise InputError(
            f"the checkpoint does not fit this model: {len(odd)} of {len(weights)} weights differ, the first is "
            f"{name}, {shape_of(theirs, name)} in the checkpoint and {shape_of(weights, name)} here; "
            "use the config.yaml beside the checkpoint's run"
        )


def shape_of(weights: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, weights[name].shape)) if name in weights else "missing"
