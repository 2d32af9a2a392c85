"""Parameter groups of the optimiser, and the learning-rate schedule (paper, 4.1)."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up, then a cosine to a final rate, which stays constant.

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

    def get_lr(self) -> list[float]:
        step = self.last_epoch  # torch's name for the step
        if step < self.warmup_steps:
            return [peak * (step + 1) / self.warmup_steps for peak in self.base_lrs]
        done = min((step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 1)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return [self.final_lr + (peak - self.final_lr) * cosine for peak in self.base_lrs]


def decay_groups(net: nn.Module) -> list[dict]:
    """Return two parameter groups: matrices, with weight decay, and the rest (norms, biases, embeddings), without."""
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in net.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
