"""Blocks of queries, each with the window of keys that it sees, so that attention computes few hidden pairs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # queries of a block of a long document
LONGEST = 2 * BLOCK  # of a document in one block: each of two blocks would see most of its keys


class QueryBlocks(NamedTuple):
    """Blocks of the queries of B rows of L positions that are laid end to end. All numbers are on the host."""

    lengths: list[int]  # queries of each block; their sum is B · L
    windows: list[tuple[int, int]]  # first key that each block sees, and one past the last
    divided: bool  # whether a document has several blocks, so that windows overlap


def query_blocks(lo: Tensor, hi: Tensor, documents: list[int]) -> QueryBlocks:
    """Divide queries at the boundaries of documents, and every BLOCK positions in a document longer than LONGEST.

    Args:
        lo: (B · L,) first key that each query sees.
        hi: (B · L,) one past the last key that each query sees.
        documents: Lengths of the pieces that do not see each other (`visibility.cuts`).
    """
    lengths, windows, start = [], [], 0
    for document in documents:
        stop = start + document
        if document <= LONGEST:
            lengths.append(document)
            windows.append((start, stop))
        else:
            for first in range(start, stop, BLOCK):
                queries = slice(first, min(first + BLOCK, stop))
                lengths.append(queries.stop - first)
                windows.append((int(lo[queries].amin()), int(hi[queries].amax())))
        start = stop
    return QueryBlocks(lengths, windows, max(documents) > LONGEST)


class KeyWindows(torch.autograd.Function):
    """Overlapping windows. They are slices, but the gradient of each slice would be a tensor of the full size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: QueryBlocks) -> tuple[Tensor, ...]:
        ctx.blocks, ctx.shape = blocks, x.shape
        return tuple(x[:, start:stop] for start, stop in blocks.windows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].new_zeros(ctx.shape)
        for (start, stop), gradient in zip(ctx.blocks.windows, gradients, strict=True):
            total[:, start:stop] += gradient
        return total, None


def key_windows(x: Tensor, blocks: QueryBlocks) -> tuple[Tensor, ...]:
    """Return the window of each block, as views of (heads, B · L, head_dim) keys or values."""
    # Without overlaps, the gradient of one `torch.split` is one concatenation, which is the fastest.
    return KeyWindows.apply(x, blocks) if blocks.divided else x.split(blocks.lengths, dim=1)
