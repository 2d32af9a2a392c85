"""Blocks in which patches have weights of their own (Mixture-of-Transformers, Liang et al., 2024).

Hidden states stay grouped by modality through all blocks, text first, so that each part of a block runs on consecutive
rows. Only attention needs the order of the sequence.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_transfusion.model.attention import Attend
from lit_transfusion.model.block import Block, attend_heads
from lit_transfusion.model.config import TransformerConfig
from lit_transfusion.model.rotary import Rope


class Grouping(NamedTuple):
    """The order of B · L positions in which all text comes before all patches."""

    order: Tensor  # (B · L,) the position of each grouped row
    inverse: Tensor  # (B · L,) the grouped row of each position
    counts: list[int]  # number of text tokens, and of patches
    shape: torch.Size  # (B, L)

    @classmethod
    def by_modality(cls, is_patch: Tensor) -> "Grouping":
        """Group (B, L) positions. This reads the counts from the device, once per forward pass."""
        order = is_patch.flatten().to(torch.uint8).argsort(stable=True)
        num_patches = int(is_patch.sum())
        return cls(order, order.argsort(), [len(order) - num_patches, num_patches], is_patch.shape)

    def group(self, x: Tensor) -> Tensor:
        """(B, L, …) → (B · L, …) with text first."""
        return x.flatten(0, 1).index_select(0, self.order)

    def ungroup(self, x: Tensor) -> Tensor:
        """(B · L, …) with text first → (B, L, …)."""
        return x.index_select(0, self.inverse).unflatten(0, self.shape)


class ModalityBlock(nn.Module):
    """Two blocks, one for text and one for patches, around one attention over both.

    With `modality_weights: ffn` they share the weights of attention.

    Args:
        config: Widths and variants.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.text = Block(config)
        self.patches = Block(config)
        if config.modality_weights == "ffn":
            self.patches.attention, self.patches.attention_norm = self.text.attention, self.text.attention_norm

    def forward(self, x: Tensor, attend: Attend, rope: Rope, grouping: Grouping) -> Tensor:
        """(B · L, D) grouped hidden states → the same shape."""
        blocks = self.text, self.patches
        parts = x.split(grouping.counts)
        qkv = torch.cat([block.project(part) for block, part in zip(blocks, parts, strict=True)])
        attended = grouping.group(attend_heads(grouping.ungroup(qkv), attend, rope, self.n_heads))
        ends = zip(blocks, parts, attended.split(grouping.counts), strict=True)
        return torch.cat([block.finish(part, part_attended) for block, part, part_attended in ends])
