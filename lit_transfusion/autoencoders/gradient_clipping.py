"""Clipping of the gradients of several nets, each by its own norm."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.training.nonfinite import NonFiniteError


def clip_each(nets: dict[str, Sequence[Tensor]], limit: float | None, step: int) -> dict[str, Tensor]:
    """Clip the gradients of each net in place, and return the norms before that.

    Args:
        nets: The weights of each net, by the name of the norm.
        limit: Largest norm, or None.
        step: Number of this optimiser step, for the message.

    Raises:
        NonFiniteError: A norm is infinite or not a number.
    """
    norms = {name: torch.nn.utils.clip_grad_norm_(weights, limit or math.inf) for name, weights in nets.items()}
    for name, norm in norms.items():
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"step {step} is not finite: {name} is {norm.item()}. The last checkpoint is unchanged; lower the "
                "learning rate, or the weight of a loss"
            )
    return norms
