"""Parameter groups of the optimiser, and the learning-rate schedules."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lit_transfusion.errors import InputError


class _Warmup(LRScheduler):
    """Linear warm-up to the peak; a subclass has the rate after it, by the step. It sets `warmup_steps`."""

    warmup_steps: int

    def get_lr(self) -> list[float]:
        step = self.last_epoch  # torch's name for the step
        if step < self.warmup_steps:
            return [peak * (step + 1) / self.warmup_steps for peak in self.base_lrs]
        return [self.after_warmup(peak, step) for peak in self.base_lrs]

    def after_warmup(self, peak: float, step: int) -> float:
        raise NotImplementedError


class WarmupCosine(_Warmup):
    """Linear warm-up, then a cosine to a final rate, which stays constant (paper, 4.1).

    The rate depends on the step and these arguments only.

    Args:
        optimizer: Optimiser whose learning rate is the peak.
        warmup_steps: Steps until the peak; the rate of the first step is 1 / warmup_steps of it.
        total_steps: Step at which the final rate is reached; in the configs it is `trainer.max_steps`.
        final_lr: The final rate.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int = 4000,
        total_steps: int = 250_000,
        final_lr: float = 1.5e-5,
    ) -> None:
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.final_lr = final_lr
        super().__init__(optimizer)

    def after_warmup(self, peak: float, step: int) -> float:
        done = min((step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 1)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.final_lr + (peak - self.final_lr) * cosine


class WarmupStableDecay(_Warmup):
    """Linear warm-up, then a constant rate, then a decay as 1 - sqrt to a final rate (Hägele et al., 2024).

    The rate before the decay does not depend on the total number of steps. So one run with a constant rate can be
    decayed from several of its checkpoints, as if each decay belonged to a run of its own length.

    Args:
        optimizer: Optimiser whose learning rate is the peak.
        warmup_steps: Steps until the peak; the rate of the first step is 1 / warmup_steps of it.
        total_steps: Step at which the final rate is reached; in the configs it is `trainer.max_steps`.
        decay_share: Share of the steps in which the rate decays, in [0, 1]; 0 keeps it constant.
        final_lr: The final rate.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int = 4000,
        total_steps: int = 250_000,
        decay_share: float = 0.2,
        final_lr: float = 0.0,
    ) -> None:
        if not 0 <= decay_share <= 1:
            raise InputError(f"WarmupStableDecay.decay_share {decay_share} is invalid; use a number in [0, 1]")
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.decay_share = decay_share
        self.final_lr = final_lr
        super().__init__(optimizer)

    def after_warmup(self, peak: float, step: int) -> float:
        begins = decay_start(self.total_steps, self.decay_share)
        if step < begins or begins == self.total_steps:
            return peak
        left = 1 - math.sqrt(min((step - begins) / (self.total_steps - begins), 1))
        return self.final_lr + (peak - self.final_lr) * left


def decay_start(total_steps: int, decay_share: float) -> int:
    """The first step at which the rate of `WarmupStableDecay` decays."""
    return total_steps - round(decay_share * total_steps)


def decay_groups(net: nn.Module) -> list[dict]:
    """Return two parameter groups: matrices, with weight decay, and the rest (norms, biases, embeddings), without."""
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in net.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
