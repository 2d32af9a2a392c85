"""Read the checkpoints of a run: one file, or a folder of shards. Reading never runs code from a checkpoint."""

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
from torch import Tensor

from lit_transfusion.errors import InputError

KEY = "lit_transfusion"  # the checkpoint's entry with the description of the model
META = "meta.pt"  # Lightning's file, in a folder of shards, for everything that is not a tensor


def read_checkpoint(path: str | Path, key: str = KEY) -> dict[str, Any]:
    """Read a checkpoint: the weights under `state_dict`, the description of the model under `key`, and other entries.

    Raises:
        InputError: The file is missing, incomplete, damaged, or from another program.
    """
    path = Path(path)
    if not path.is_file() and not is_sharded(path):
        raise InputError(f"checkpoint {path} not found; check the path")
    if path.is_dir() and not is_whole(path):
        raise InputError(f"checkpoint {path} is incomplete: writing it did not finish; use an earlier checkpoint")
    with naming(path):
        checkpoint = _read_shards(path) if path.is_dir() else _read_file(path)
    if not isinstance(checkpoint, dict) or key not in checkpoint:
        raise InputError(
            f"{path} is not a checkpoint of lit_transfusion: it has no {key!r} entry; use a file from RUN/checkpoints"
        )
    if not any(name.startswith("net.") for name in checkpoint.get("state_dict", {})):
        raise InputError(
            f"checkpoint {path} contains no weights: no key of its 'state_dict' starts with 'net.'; use another "
            "checkpoint"
        )
    return checkpoint


def check_resumable(path: Path, fit: bool, key: str = KEY) -> None:
    """Check, before a run starts, that it can use a checkpoint; with `fit`, that training can resume from it.

    `key` is the entry that checkpoints of this kind of run have.

    Raises:
        InputError: The checkpoint is incomplete, is from another program, or contains only weights.
    """
    if path.is_file():
        checkpoint = read_checkpoint(path, key)
    else:
        with naming(path):
            checkpoint = torch.load(path / META, map_location="cpu", weights_only=True)
    if fit and "lr_schedulers" not in checkpoint:
        raise InputError(
            f"--ckpt_path {path} contains only weights, so training cannot resume from it; to start a new run from the "
            f"weights, use --model.init_from {path}"
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn any error inside the block into an InputError that names the checkpoint."""
    try:
        yield
    except Exception as error:  # torch raises many types, depending on where the file is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"checkpoint {path} cannot be read ({reason}); use another checkpoint") from None


def is_sharded(path: Path) -> bool:
    """Whether `path` is a folder of shards, as the processes of a sharded run write it (`training/fsdp.py`)."""
    return any(path.glob("*.distcp"))


def is_whole(folder: Path) -> bool:
    """Whether a folder of shards is complete: it has the files that are written last."""
    return (folder / ".metadata").is_file() and (folder / META).is_file()


def _read_file(path: Path) -> Any:
    # mmap: most of the file is the state of the optimiser, which is not needed here.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_shards(folder: Path) -> dict[str, Any]:
    """Read the weights of all shards. (Lightning's tool for this reads only folders of FSDPStrategy.)"""
    import torch.distributed.checkpoint as dcp  # imported here, since it takes a second

    weights = {name: torch.empty_like(tensor, device="cpu") for name, tensor in shapes_of_shards(folder).items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is intended
        try:
            dcp.load({"state_dict": weights}, checkpoint_id=folder, no_dist=True)
        except dcp.api.CheckpointException as error:  # a BaseException, with the error of each rank
            raise next(iter(error.failures.values()))[0] from None
    rest = torch.load(folder / META, map_location="cpu", weights_only=True)
    return {**rest, "state_dict": weights}


def shapes_of_shards(folder: Path) -> dict[str, Tensor]:
    """The weights by name, as tensors on the meta device: shape and dtype without values."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with open(folder / ".metadata", "rb") as file:
        index = _Index(file).load()
    return {
        name.removeprefix("state_dict."): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in index.state_dict_metadata.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }


class _Index(pickle.Unpickler):
    """Unpickler for the index of a sharded checkpoint: allows torch's own data types, and nothing that can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # Python 3.11.0 to 3.11.3 write a member of an Enum as getattr
            return member_of
        if module.partition(".")[0] in ("torch", "pathlib") and "." not in name:
            found = super().find_class(module, name)
            plain = (enum.Enum, torch.Size, pathlib.PurePath)
            if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, plain)):
                return found
            if isinstance(found, torch.dtype) or found is torch.serialization._get_layout:
                return found
        raise pickle.UnpicklingError(f"its index names {module}.{name}, which is not allowed")


def member_of(cls: Any, name: str) -> enum.Enum:
    """Return the member of an Enum, and nothing else that `getattr` could return."""
    if not (isinstance(cls, type) and issubclass(cls, enum.Enum) and name in cls.__members__):
        raise pickle.UnpicklingError(f"its index reads the attribute {name!r} of {cls!r}, which is not allowed")
    return cls[name]
