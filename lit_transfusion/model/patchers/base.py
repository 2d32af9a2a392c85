"""The base class of patchers, the only part of the net that handles both pixels and patches."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError


class Patcher(nn.Module):
    """Turns noisy images into patch vectors for the Transformer, and hidden states back into images (paper, 3.2).

    A subclass is a new patcher; no other code needs to change. It must accept an empty batch (N = 0), so that its
    parameters have gradients on every rank in a step without images.

    Args:
        latent_channels: Channels C of the images (set by the data module's codec).
        dim: Width D of the Transformer (set by the model's size).
        patch_size: Side of a patch in latent pixels; the image's height and width must be multiples of it.
    """

    images_are_tokens: bool = False  # whether there are no patches, since each code of an image is a token
    positions = 0  # no learned positions, unless `learn_positions` is called

    def __init__(self, latent_channels: int = 3, dim: int = 128, patch_size: int = 2) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.dim = dim
        self.patch_size = patch_size

    def patchify(self, noisy_images: Tensor, t_emb: Tensor) -> tuple[Tensor, Any]:
        """(N, C, H, W), (N, D) → patches (N, P, D) in raster order, and any value that is passed to `unpatchify`."""
        raise NotImplementedError

    def unpatchify(self, hidden: Tensor, t_emb: Tensor, skips: Any, grid: tuple[int, int]) -> Tensor:
        """(N, P, D), (N, D), skips, (rows, columns) with rows · columns = P → (N, C, H, W)."""
        raise NotImplementedError

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images (N, C, H, W)."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def learn_positions(self, positions: int) -> None:
        """Create the parameters of `add_positions`: a vector for each row and one for each column of patches.

        Args:
            positions: Number of rows and of columns that have their own vectors; 0 for no learned positions. For an
                image with more of them, the vectors are interpolated.
        """
        if positions < 0:
            raise InputError(f"model.patcher: positions {positions} must be at least 0; 0 learns none")
        self.positions = positions
        if positions:
            self.row_positions = nn.Embedding(positions, self.dim)
            self.column_positions = nn.Embedding(positions, self.dim)
            nn.init.normal_(self.row_positions.weight, std=self.dim**-0.5)
            nn.init.normal_(self.column_positions.weight, std=self.dim**-0.5)

    def add_positions(self, patches: Tensor) -> Tensor:
        """Add the vectors of row and column to (N, rows, columns, D) patches, if positions are learned.

        This departs from the paper, which gives a patch no position except its place in the sequence.
        """
        if not self.positions:
            return patches
        rows = vectors_of(self.row_positions.weight, patches.shape[1])
        columns = vectors_of(self.column_positions.weight, patches.shape[2])
        return patches + rows[:, None] + columns

    def check(self, height: int, width: int) -> None:
        """Check that an image consists of whole patches.

        Raises:
            InputError: Height or width is not a multiple of `patch_size`.
        """
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"image {height}x{width} is not divisible by patch_size {self.patch_size}; change data.image_size or "
                "patch_size of model.patcher"
            )


def vectors_of(table: Tensor, number: int) -> Tensor:
    """The first vectors of a table (positions, D), or all of them interpolated to a larger number: (number, D)."""
    if number <= len(table):
        return table[:number]
    return F.interpolate(table.T[None], number, mode="linear", align_corners=True)[0].T
