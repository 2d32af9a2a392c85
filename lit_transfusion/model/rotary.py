"""Rotary position embeddings, of one axis or two."""

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]  # cosines and sines, (B, 1, L, head_dim / 2)


def rotary_angles(coordinates: Tensor, head_dim: int, theta: float) -> Rope:
    """Map (B, L, axes) coordinates to cosines and sines, (B, 1, L, head_dim / 2) in float32.

    The axes take turns: frequency i turns by axis i mod axes. So each axis has low and high frequencies, and a position
    whose coordinates are all equal is rotated as by one axis.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=coordinates.device) / head_dim)
    axis = torch.arange(head_dim // 2, device=coordinates.device) % coordinates.shape[-1]
    angles = coordinates.index_select(-1, axis)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the pairs (x_i, x_{i + head_dim/2}) of (B, heads, L, head_dim) by their angles."""
    cos, sin = rope
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def rows_and_columns(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Coordinates (row, column) of the patches of images of one shape, (N, P, 2) in float32.

    An image of h × w patches between BOI at position p and EOI at position p + hw + 1 has the coordinates
    p + i · (hw + 1) / (h + 1) for its rows i = 1 … h, and p + j · (hw + 1) / (w + 1) for its columns j = 1 … w. So BOI
    is row and column 0, EOI is row h + 1 and column w + 1, and text after an image keeps its positions (Su, 2024,
    RoPE-Tie). The coordinates of text are its position, twice.

    Args:
        positions: (N, P) int64, positions of the patches within the document.
        grid: (h, w), rows and columns of patches of an image.
    """
    h, w = grid
    row = torch.arange(1, h + 1, device=positions.device) * ((h * w + 1) / (h + 1))
    column = torch.arange(1, w + 1, device=positions.device) * ((h * w + 1) / (w + 1))
    steps = torch.cartesian_prod(row, column)  # (P, 2)
    return positions[:, :1].reshape(-1, 1, 1) - 1 + steps
