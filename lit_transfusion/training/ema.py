"""The exponential moving average of the weights."""

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Update the average in place: average ← decay · average + (1 - decay) · net.

    In early steps the decay is (1 + step) / (10 + step) if that is smaller, so that the random initial weights soon
    have no effect.

    Args:
        average: Net of the same structure as `net`.
        net: The trained net.
        decay: Decay in [0, 1).
        step: Number of optimiser steps made so far, from 1.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
