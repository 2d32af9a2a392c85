"""Load weights from another run, and check that a checkpoint fits the model."""

from typing import Any

from torch import Tensor

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import KEY
from lit_transfusion.generation.pipeline import Pipeline, second_line
from lit_transfusion.model import Transfusion
from lit_transfusion.training.language_model import copy_language_model, find_language_model


def start_from(path: str, net: Transfusion, tokenizer: Tokenizer) -> int:
    """Copy the (averaged) weights of another run, of an exported model, or of a language model into `net`.

    Returns:
        Number of tokens whose rows of the embedding and the head were copied; the markers of images count as new.

    Raises:
        InputError: The other model has another tokenizer, or its weights do not fit.
    """
    language_model = find_language_model(path)
    if language_model is not None:
        return copy_language_model(language_model, net, tokenizer)
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
    return tokenizer.boi


def check_fits(checkpoint: dict[str, Any], weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Check that a run can resume from a checkpoint, before anything is changed.

    Args:
        checkpoint: Content of the checkpoint, as Lightning has read it.
        weights: Weights of this model, by their names in checkpoints.
        tokenizer: Tokenizer of this model.

    Raises:
        InputError: The checkpoint is from another program or tokenizer, contains NaN or infinite weights, or weights of
            other names or shapes.
    """
    if KEY not in checkpoint:
        raise InputError(
            f"--ckpt_path is not a checkpoint of lit_transfusion: it has no {KEY!r} entry; use another file"
        )
    if checkpoint[KEY]["tokenizer"] != tokenizer.model:
        raise InputError(
            "the checkpoint has another tokenizer than this run (or the data from which it is trained have changed); "
            "set data.tokenizer_model to the tokenizer.model in the run directory of the checkpoint"
        )
    theirs = checkpoint["state_dict"]
    bad = [name for name, weight in theirs.items() if weight.device.type != "meta" and not weight.isfinite().all()]
    if bad:
        raise InputError(
            f"the checkpoint's weight {bad[0]} contains NaN or infinite numbers, so the run has diverged; resume from "
            "an earlier checkpoint with --ckpt_path"
        )
    different = [name for name in weights | theirs if shape_of(weights, name) != shape_of(theirs, name)]
    if different:
        name = different[0]
        raise InputError(
            f"the checkpoint does not fit this model: {len(different)} of {len(weights)} weights differ, the first is "
            f"{name}, {shape_of(theirs, name)} in the checkpoint and {shape_of(weights, name)} here; "
            "use the config.yaml in the run directory of the checkpoint"
        )


def shape_of(weights: dict[str, Tensor], name: str) -> str:
    """Return the shape of a weight, such as "3x16", or "missing"."""
    return "x".join(map(str, weights[name].shape)) if name in weights else "missing"
