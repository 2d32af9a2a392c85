"""A checkpoint as a run writes it: one file, or a folder of shards. Reading it executes nothing that is in it."""

import dataclasses
import enum
import pathlib
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from lit_transfusion.errors import InputError

KEY = "lit_transfusion"  # of the description in a checkpoint
META = "meta.pt"  # Lightning's name for all that is no tensor, beside what torch.distributed.checkpoint writes


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The weights, under `state_dict`, the description of the net and its parts, under KEY, and what else is there."""
    path = Path(path)
    if not path.is_file() and not is_sharded(path):
        raise InputError(f"checkpoint {path} not found")
    if path.is_dir() and not is_whole(path):
        raise InputError(f"{path} was not written to its end; take an earlier checkpoint")
    with naming(path):
        checkpoint = _read_shards(path) if path.is_dir() else _read_file(path)
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of lit_transfusion: it has no {KEY!r} entry")
    if not any(name.startswith("net.") for name in checkpoint.get("state_dict", {})):
        raise InputError(f"{path} holds no weights: its 'state_dict' has no entry that begins with net.")
    return checkpoint


def check_resumable(path: Path, fit: bool) -> None:
    """See that a run can use a checkpoint (for training, if `fit`), before it does anything else.

    Raises:
        InputError: It is cut off, of another program, or has weights only.
    """
    if path.is_file():
        checkpoint = read_checkpoint(path)
    else:
        with naming(path):
            checkpoint = torch.load(path / META, map_location="cpu", weights_only=True)
    if fit and "lr_schedulers" not in checkpoint:
        raise InputError(
            f"--ckpt_path {path} has weights only, so training cannot resume from it; start a new run from the weights "
            f"with --model.init_from {path}"
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the checkpoint in the error if it cannot be read."""
    try:
        yield
    except Exception as error:  # of a dozen kinds, depending on where in the file torch loses the thread
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not a checkpoint that can be read ({reason})") from None


def is_sharded(path: Path) -> bool:
    """Whether this is a folder into which the processes of a sharded run wrote their parts (`training/fsdp.py`)."""
    return any(path.glob("*.distcp"))


def is_whole(folder: Path) -> bool:
    """Whether it has what is written after all parts."""
    return (folder / ".metadata").is_file() and (folder / META).is_file()


def _read_file(path: Path) -> Any:
    # Mapped into memory: most of the file is the optimiser's, which nobody asks for here.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_shards(folder: Path) -> dict[str, Any]:
    """Only the weights are put together. (Lightning's tool for that knows the folders of FSDPStrategy alone.)"""
    weights = {name: torch.empty_like(tensor, device="cpu") for name, tensor in shapes_of_shards(folder).items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        try:
            dcp.load({"state_dict": weights}, checkpoint_id=folder, no_dist=True)
        except dcp.api.CheckpointException as error:  # no Exception; has what went wrong on each rank
            raise next(iter(error.failures.values()))[0] from None
    rest = torch.load(folder / META, map_location="cpu", weights_only=True)  # all that is no tensor
    return {**rest, "state_dict": weights}


def shapes_of_shards(folder: Path) -> dict[str, Tensor]:
    """The weights by name, as tensors that have a shape and a dtype and no values."""
    with open(folder / ".metadata", "rb") as file:
        index: Metadata = _Index(file).load()
    return {
        name.removeprefix("state_dict."): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in index.state_dict_metadata.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }


class _Index(pickle.Unpickler):
    """Reads the index of a sharded checkpoint, which is a pickle: torch's own records, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("torch", "pathlib") and "." not in name:
            found = super().find_class(module, name)
            plain = (enum.Enum, torch.Size, pathlib.PurePath)
            if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, plain)):
                return found
            if isinstance(found, torch.dtype) or found is torch.serialization._get_layout:
                return found
        raise pickle.UnpicklingError(f"its index names {module}.{name}")
