"""The record that a run writes of each step, for tests that stop or kill it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import lightning
from torch.utils._pytree import tree_leaves

from lit_transfusion.data.types import PackedBatch


class Witness(lightning.Callback):
    """Writes a record of each step immediately: hash of the batch, exact loss, and learning rate.

    Each rank has its own file beside the run. A resumed run appends to it.
    """

    def on_train_start(self, trainer, pl_module):
        self.file = witness_of(Path(trainer.default_root_dir), trainer.global_rank).open("a", buffering=1)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        seen = [trainer.global_step, digest(batch), outputs["loss"].item().hex(), rate]
        self.file.write(json.dumps(seen) + "\n")


def digest(batch: PackedBatch) -> str:
    """Return a hash of types, shapes and values of a batch."""
    content = hashlib.sha256()
    for column in tree_leaves(batch):
        content.update(repr((column.dtype, column.shape)).encode() + column.numpy().tobytes())
    return content.hexdigest()


def witness_of(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}.{rank}.jsonl")


def steps(folder: Path, rank: int = 0) -> Iterator[list]:
    """Return [step, hash of the batch, loss, learning rate] of all recorded steps; resumed runs repeat some steps."""
    path = witness_of(folder, rank)
    return map(json.loads, path.read_text().splitlines() if path.exists() else ())
