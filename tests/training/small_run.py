"""Settings of the smallest run, and functions that read its checkpoints."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}

SMALLEST_MODEL = {
    "size": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "patcher": {"class_path": "LinearPatcher", "init_args": {"patch_size": 4}},
}
SMALLEST_DATA = {
    "source": {"class_path": "Shapes", "init_args": {"num_examples": 25, "num_val_examples": 8}},
    "image_size": 16,
    "sequence_length": 96,
    "batch_size": 1,
    "vocab_size": 300,
}


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    """Return the checkpoint of a step of the run in `folder`."""
    (path,) = (folder / "checkpoints").glob(f"*step={step}.ckpt")
    return read(path)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint file or a sharded checkpoint. The result has the same form."""
    if path.is_file():
        return torch.load(path, weights_only=True)
    with TemporaryDirectory() as folder:
        dcp_to_torch_save(path, f"{folder}/whole.pt")
        whole = torch.load(f"{folder}/whole.pt", weights_only=True)
    rest = torch.load(path / "meta.pt", weights_only=True)
    return rest | {"state_dict": whole["state_dict"], "optimizer_states": [whole["optimizer_0"]]}
