"""The base class of auxiliary losses, which training adds to those of text and images."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class PatchStates(NamedTuple):
    """Hidden states of the patches of images of one shape, and the clean pictures."""

    states: Tensor  # (M, P, D), patches in raster order
    grid: tuple[int, int]  # rows and columns of the P patches
    pictures: Tensor  # (M, 3, height, width) in [-1, 1]


class AuxiliaryLoss(nn.Module):
    """A loss of the hidden states of the patches of learned images. A subclass is a new loss.

    Its own parameters are trained with the net and saved in checkpoints for resuming; generation does not use them. The
    loss is logged as `loss_auxiliary`.

    Args:
        weight: Its weight in the sum of the losses; it is averaged over images, as the image loss is.
        layer: Number of the block whose output it uses, from 1.
    """

    def __init__(self, weight: float, layer: int) -> None:
        super().__init__()
        self.weight = weight
        self.layer = layer

    def build(self, dim: int) -> None:
        """Create the parameters, for hidden states of width `dim`."""

    def forward(self, images: Sequence[PatchStates]) -> Tensor:
        """Return the loss of each image (ΣM,). There is at least one group, which may be empty (M = 0)."""
        raise NotImplementedError
