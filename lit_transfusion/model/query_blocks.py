"""Blocks of queries, each with the window of keys that it sees, so that attention computes few hidden pairs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

LONGEST = 256  # queries of a block


class QueryBlocks(NamedTuple):
    """Blocks of the queries of B rows of L positions that are laid end to end. All numbers are on the host."""

    lengths: list[int]  # queries of each block; their sum is B · L
    windows: list[tuple[int, int]]  # first key that each block sees, and one past the last
    is_document: list[bool]  # whether a block is a whole document, so that its window overlaps no other
    long_documents: list[tuple[int, int]]  # first and last positions of the documents of several blocks


def query_blocks(lo: Tensor, hi: Tensor, documents: list[int]) -> QueryBlocks:
    """Divide queries at the boundaries of documents, and every LONGEST positions in a longer document.

    Args:
        lo: (B · L,) first key that each query sees.
        hi: (B · L,) one past the last key that each query sees.
        documents: Lengths of the pieces that do not see each other (`visibility.cuts`).
    """
    blocks = QueryBlocks([], [], [], [])
    start = 0
    for length in documents:
        stop = start + length
        if length > LONGEST:
            blocks.long_documents.append((start, stop))
        for first in range(start, stop, LONGEST):
            end = min(first + LONGEST, stop)
            seen = (int(lo[first:end].amin()), int(hi[first:end].amax())) if length > LONGEST else (start, stop)
            blocks.lengths.append(end - first)
            blocks.windows.append(seen)
            blocks.is_document.append(length <= LONGEST)
        start = stop
    return blocks


class KeyWindows(torch.autograd.Function):
    """The windows of (heads, B · L, head_dim) keys or values.

    They are the same as slices, but the gradient of each slice would be a tensor of the full size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: QueryBlocks) -> tuple[Tensor, ...]:
        ctx.blocks, ctx.shape = blocks, x.shape
        return tuple(x[:, start:stop] for start, stop in blocks.windows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].new_empty(ctx.shape)
        for start, stop in ctx.blocks.long_documents:
            total[:, start:stop] = 0
        parts = zip(ctx.blocks.windows, ctx.blocks.is_document, gradients, strict=True)
        for (start, stop), is_document, gradient in parts:
            if is_document:
                total[:, start:stop] = gradient
            else:
                total[:, start:stop] += gradient
        return total, None
