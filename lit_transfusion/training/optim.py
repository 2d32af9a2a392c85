"""Optimiser groups and the learning-rate schedule (paper, 4.1)."""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR


class WarmupCosine(SequentialLR):
    """Linear warm-up, then a cosine down to a floor.

    Args:
        optimizer: Whose learning rate is the peak.
        warmup_steps: Steps until the peak; the first step already has 1 / warmup_steps of it.
        total_steps: Step at which the floor is reached; the configs tie it to `trainer.max_steps`.
        final_lr: The floor.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int = 4000,
        total_steps: int = 250_000,
        final_lr: float = 1.5e-5,
    ) -> None:
        warmup = LinearLR(optimizer, start_factor=1 / max(warmup_steps, 1), total_iters=max(warmup_steps - 1, 1))
        cosine = CosineAnnealingLR(optimizer, T_max=max(total_steps - warmup_steps, 1), eta_min=final_lr)
        super().__init__(optimizer, [warmup, cosine], milestones=[warmup_steps])


def decay_groups(net: nn.Module) -> list[dict]:
    """Two parameter groups: matrices, which decay, and the rest (norms, biases, embeddings), which do not."""
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in net.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
