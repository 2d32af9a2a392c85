"""Ctrl-C where several processes train: all of them stop after the same step."""

import signal
import sys
import threading
from typing import Any

import lightning
import torch
import torch.distributed as dist


class StopTogether(lightning.Callback):
    """A process that stopped in the midst of a step would wait for the others to write the checkpoint with it, and they
    would wait for it to make the step. So the first Ctrl-C is noted, and after each step the processes tell each other
    whether one of them has; the second stops a process where it is.
    """

    def __init__(self) -> None:
        self.asked = False
        self.group: dist.ProcessGroup | None = None  # on the host, so that no GPU is waited for
        self.handler: Any = None  # of others before

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():  # only that has handlers
            self.group = dist.new_group(backend="gloo")
            self.handler = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if dist.get_rank() == 0:
            print("\nStopping after this step; Ctrl-C again stops without a checkpoint.", file=sys.stderr, flush=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.group is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        asked = torch.tensor(int(self.asked))
        dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.group)
        if asked:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.group is not None:
            signal.signal(signal.SIGINT, self.handler)
            self.group = None
