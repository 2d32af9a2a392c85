"""What a run that is killed leaves behind, and the process in which it is."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import lightning
import torch

from lit_transfusion.cli import main
from lit_transfusion.data.types import PackedBatch


class Witness(lightning.Callback):
    """Writes down each step as soon as it is done: the hash of all that was in the batch, its loss to the last bit, and
    the learning rate. Each rank has a file of its own, beside the run, to which a run that goes on adds."""

    def on_train_start(self, trainer, pl_module):
        self.file = witness_of(Path(trainer.default_root_dir), trainer.global_rank).open("a", buffering=1)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        seen = [trainer.global_step, digest(batch), outputs["loss"].item().hex(), rate]
        self.file.write(json.dumps(seen) + "\n")


def digest(batch: PackedBatch) -> str:
    content = hashlib.sha256()
    for column in batch:
        content.update(repr((column.dtype, column.shape)).encode() + column.numpy().tobytes())
    return content.hexdigest()


def witness_of(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}.{rank}.jsonl")


def steps(folder: Path, rank: int = 0) -> Iterator[list]:
    """[step, hash of the batch, loss, learning rate] of what has been learned so far, again after each start."""
    path = witness_of(folder, rank)
    return map(json.loads, path.read_text().splitlines() if path.exists() else ())


def fit(arguments: list[str]) -> None:
    """The command, in a process that has a group of its own with its workers."""
    os.setsid()
    torch.set_num_threads(1)
    main(["fit", *arguments])
