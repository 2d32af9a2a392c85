"""How many CPU threads a run takes."""

from typing import Any

import lightning
import torch


class LimitThreads(lightning.Callback):
    """Keeps torch to a number of CPU threads in each process: a small net gains nothing from more, and loses much when
    another process takes one of their cores.

    Args:
        threads: Of each process.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        torch.set_num_threads(self.threads)
