"""The moving average of the weights."""

from typing import Any

import lightning
import torch
from torch.distributed.fsdp import FSDPModule


class AverageWeights(lightning.Callback):
    """After each optimiser step, ema ← decay · ema + (1 - decay) · net.

    A callback and not a hook of the module: checkpoints are written by a callback that runs before the module's hooks,
    and would hold an average that is one step behind. The average itself is a submodule, `LitTransfusion.ema`, so that
    checkpoints and sharding treat it as they treat the net.

    Early on the decay is (1 + step) / (10 + step) if that is smaller, so that the random start is soon forgotten.
    """

    def __init__(self) -> None:
        self.last_step: int | None = None  # not training yet

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step == self.last_step:  # in the middle of accumulating gradients
            return
        self.last_step = step
        decay = min(pl_module.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(pl_module.ema.parameters()), list(pl_module.net.parameters()), 1 - decay)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Ctrl-C may come after the step and before this callback, as while samples are drawn; a checkpoint follows.
        (Not of a sharded net, some of whose weights may be gathered then.)"""
        if self.last_step is not None and not isinstance(pl_module.net, FSDPModule):
            self.on_train_batch_end(trainer, pl_module)
