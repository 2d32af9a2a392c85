"""Start from a language model (LMFusion, Shi et al., 2024, arXiv 2412.15188): a Llama that transformers has written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_transfusion import hub
from lit_transfusion.data.json_vocabulary import read_json
from lit_transfusion.data.tokenizer import FILES, FOLDER_FILES, Tokenizer
from lit_transfusion.errors import InputError
from lit_transfusion.model import Transfusion
from lit_transfusion.model.llama import copy_text_to_patches, size_of, text_weights

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ROWS = ("model.embed_tokens.weight", "lm_head.weight")  # weights with a row for each token


class LanguageModel(NamedTuple):
    """A model of transformers, whose weights are not read yet."""

    name: str  # what the user calls it
    folder: Path  # with config.json; for a model on the hub, in the hub's cache
    size: dict[str, Any]  # the fields of `TransformerConfig` that it sets


def find_language_model(name: str) -> LanguageModel | None:
    """Find a model of transformers: a folder, or owner/name on the hub. None if it is not of transformers.

    Raises:
        InputError: It is a model of transformers, and the net cannot compute what it computes.
    """
    folder = Path(name)
    if not folder.exists() and hub.NAME.fullmatch(name):
        folder = hub.download(name, [CONFIG])
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "model_type" not in config:
        return None
    try:
        return LanguageModel(name, folder, size_of(config))
    except (KeyError, ZeroDivisionError, TypeError) as error:
        raise InputError(f"model.init_from: {name}/{CONFIG} lacks {error}; use another model") from None
    except InputError as error:
        raise InputError(f"model.init_from: {name}/{CONFIG}: {error}") from None


@torch.no_grad()
def copy_language_model(model: LanguageModel, net: Transfusion, tokenizer: Tokenizer) -> int:
    """Copy the weights of a language model to the text and to the patches of a net.

    A checkpoint may have more rows than its tokenizer has ids, which are left out, or fewer, after which the net's
    rows are new, like those of the image markers.

    Returns:
        Number of rows of the embedding that were copied.

    Raises:
        InputError: The net has another size or tokenizer, or a file is missing, damaged, or has other weights.
    """
    check_size(model, net)
    if hub.NAME.fullmatch(model.name) and not Path(model.name).exists():
        folder = hub.download(model.name, [CONFIG, "model*.safetensors", INDEX, *FOLDER_FILES])
        model = model._replace(folder=folder)
    check_tokenizer(model, tokenizer)
    missing, rows = text_weights(net), tokenizer.boi
    for name, theirs in read_weights(model):
        ours = missing.pop(name, None)
        if ours is None:
            if name not in ROWS and not name.endswith("rotary_emb.inv_freq"):
                raise InputError(f"model.init_from: {model.name} has an unknown weight {name}; use a plain Llama")
            continue
        if name in ROWS:
            rows = min(rows, len(theirs))
            ours, theirs = ours[: len(theirs)][: tokenizer.boi], theirs[: tokenizer.boi]
        if ours.shape != theirs.shape or not theirs.isfinite().all():
            raise InputError(
                f"model.init_from: the weight {name} of {model.name} has the shape {tuple(theirs.shape)} instead of "
                f"{tuple(ours.shape)}, or values that are not finite; use another checkpoint"
            )
        ours.copy_(theirs)
    if missing:
        raise InputError(f"model.init_from: {model.name} has no weight {next(iter(missing))}; use another checkpoint")
    copy_text_to_patches(net)
    return rows


def check_size(model: LanguageModel, net: Transfusion) -> None:
    """Raise InputError if the net has another size than the language model."""
    config = net.transformer.config
    ours = {name: getattr(config, name) for name in model.size}
    ours |= {"n_kv_heads": config.kv_heads, "hidden_dim": config.feed_forward_dim}
    if ours != model.size:
        fields = ", ".join(f"{name}: {str(value).lower()}" for name, value in model.size.items())
        raise InputError(f"model.size is not that of {model.name} (model.init_from); use size: {{{fields}}}")


def check_tokenizer(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Raise InputError if the folder of the language model has a tokenizer, and it is not this one."""
    theirs = [model.folder / name for name in FILES if (model.folder / name).is_file()]
    if theirs and all(Tokenizer.from_file(str(path)).model != tokenizer.model for path in theirs):
        raise InputError(
            f"model.init_from: {model.name} was trained with another tokenizer; set data.tokenizer_model to "
            f"{model.name}, or to ${{model.init_from}}"
        )


def read_weights(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """Read the weights one after the other, from one file or from those that the index names."""
    index = model.folder / INDEX
    files = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [WEIGHTS]
    for file in files:
        path = model.folder / file
        if not path.is_file():
            raise InputError(f"model.init_from: {model.name} contains no {file}; save it with safetensors")
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # it is not a mapping
                    yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise InputError(f"model.init_from: {path} cannot be read ({error}); use another file") from None
