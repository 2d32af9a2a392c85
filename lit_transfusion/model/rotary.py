"""Rotary position embeddings, of one axis or two."""

import torch
from torch import Tensor

from lit_transfusion.model.visibility import run_starts

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


def rows_and_columns(positions: Tensor, image_ids: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give patches the coordinates (row, column), and text its position twice; (B, L, 2) in float32.

    An image of h × w patches between BOI at position p and EOI at position p + hw + 1 has the coordinates
    p + i · (hw + 1) / (h + 1) for its rows i = 1 … h, and p + j · (hw + 1) / (w + 1) for its columns j = 1 … w. So BOI
    is row and column 0, EOI is row h + 1 and column w + 1, and text after an image keeps its positions (Su, 2024,
    RoPE-Tie).

    Args:
        positions: (B, L) int64 within the document.
        image_ids: (B, L) int64, one number per image at its patches, negative elsewhere.
        grid: (h, w), rows and columns of patches of an image.
    """
    h, w = grid
    first = positions.gather(1, run_starts(image_ids))  # position of the first patch of each image
    row, column = (positions - first) // w + 1, (positions - first) % w + 1
    steps = torch.stack([row * ((h * w + 1) / (h + 1)), column * ((h * w + 1) / (w + 1))], dim=-1)  # (B, L, 2)
    return torch.where(image_ids[..., None] >= 0, (first - 1)[..., None] + steps, positions[..., None].float())
