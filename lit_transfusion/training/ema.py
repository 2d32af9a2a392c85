"""The moving average of the weights."""

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """ema ← decay · ema + (1 - decay) · net, in place.

    Early on the decay is (1 + step) / (10 + step) if that is smaller, so that the random start is soon forgotten.

    Args:
        average: Of the same structure as `net`.
        net: The weights that are trained.
        decay: In [0, 1).
        step: The optimiser step that was just made, from 1.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
