"""The callback that limits the CPU threads of a run."""

from typing import Any

import lightning
import torch


class LimitThreads(lightning.Callback):
    """Limits the CPU threads of torch in each process.

    A small net is not faster with more threads, and much slower if another process uses one of their cores.

    Args:
        threads: Number of threads of each process.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        torch.set_num_threads(self.threads)
