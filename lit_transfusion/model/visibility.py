"""Who sees whom.

Every query of a Transfusion sequence sees one interval of keys [lo, hi): `lo` is the start of its document; `hi` is
q + 1 for text and the end of its own image for a patch (paper, 3.3 and Figure 4). Two integers per position are the
whole mask, and everything else is a reading of them:

    lo, hi = Bidirectional().intervals(document_ids, image_ids)
    dense_mask(lo, hi)    # (B, L, L) bool: tests, small inputs, pictures
    block_mask(lo, hi)    # FlexAttention, made without ever touching L × L values
    cuts(lo, hi)          # where a row falls apart into pieces that do not see each other

A new variant is a class with one method; its name is then a value of `model.mask` in YAML.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

FLEX_BLOCK = 128  # FlexAttention's tile; a row that it is to work on must be a multiple of this

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # row, head, query, key → whether the query sees the key


class Visibility:
    """A rule of who sees whom. It must let every position see itself."""

    def intervals(self, document_ids: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) ids → `lo` and `hi`, both (B, L): position q attends to the keys lo[q] ≤ k < hi[q] of its row."""
        raise NotImplementedError


class Causal(Visibility):
    """A patch sees only what comes before it, as text does ("causal" in the paper's Table 5)."""

    def intervals(self, document_ids: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
        return run_starts(document_ids), index + 1


class Bidirectional(Visibility):
    """Causal over the sequence, bidirectional inside each image (paper, 3.3; "bidirectional" in its Table 5)."""

    def intervals(self, document_ids: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        lo, hi = Causal().intervals(document_ids, image_ids)
        return lo, torch.where(image_ids >= 0, run_ends(image_ids), hi)


def run_starts(ids: Tensor) -> Tensor:
    """For each position of (B, L), the index at which its run of equal ids begins."""
    index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return torch.where(begins, index, 0).cummax(dim=1).values


def run_ends(ids: Tensor) -> Tensor:
    """For each position of (B, L), the index just past its run of equal ids."""
    return ids.shape[1] - run_starts(ids.flip(1)).flip(1)


def dense_mask(lo: Tensor, hi: Tensor) -> Tensor:
    """(B, L) intervals → (B, L, L) bool, True where the query (second axis) sees the key (last axis)."""
    key = torch.arange(lo.shape[1], device=lo.device)
    return (key >= lo[..., None]) & (key < hi[..., None])


def mask_mod(lo: Tensor, hi: Tensor) -> MaskMod:
    """(B, L) intervals → the predicate that FlexAttention evaluates inside a partly visible block."""

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= lo[b, q]) & (k < hi[b, q])

    return visible


def block_mask(lo: Tensor, hi: Tensor) -> BlockMask:
    """(B, L) intervals → BlockMask, in O((L / 128)²): L must be a multiple of 128.

    Every interval holds its own query, so the intervals of neighbouring queries overlap, and what a block of queries
    sees is one interval as well: [min lo, max hi). What all of its queries see is [max lo, min hi).
    """
    lo_blocks, hi_blocks = lo.unflatten(1, (-1, FLEX_BLOCK)), hi.unflatten(1, (-1, FLEX_BLOCK))
    first = torch.arange(0, lo.shape[1], FLEX_BLOCK, device=lo.device)  # first key of each key block
    last = first + FLEX_BLOCK
    some = (lo_blocks.amin(2)[..., None] < last) & (hi_blocks.amax(2)[..., None] > first)  # (B, q blocks, k blocks)
    full = (lo_blocks.amax(2)[..., None] <= first) & (hi_blocks.amin(2)[..., None] >= last)
    return BlockMask.from_kv_blocks(
        *_packed_indices(some & ~full),
        *_packed_indices(full),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=mask_mod(lo, hi),
    )


def _packed_indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, q blocks, k blocks) bool → how many are set in each row, and their indices first (one head for all)."""
    count = blocks.sum(2, dtype=torch.int32)
    indices = blocks.to(torch.int8).argsort(dim=2, descending=True, stable=True).to(torch.int32)
    return count[:, None], indices[:, None].contiguous()


def cuts(lo: Tensor, hi: Tensor) -> list[int]:
    """Lengths of the pieces into which B rows of L positions, laid end to end, can be cut.

    A row may be cut before position s where no interval crosses s: no later query looks back past it, and no earlier
    query looks ahead to it. With the paper's masks the pieces are the documents.
    """
    index = torch.arange(lo.shape[1], device=lo.device)
    earliest = lo.flip(1).cummin(dim=1).values.flip(1)  # the earliest key that s or any later query sees
    latest = torch.cat([torch.zeros_like(hi[:, :1]), hi.cummax(dim=1).values[:, :-1]], dim=1)
    starts = ((earliest >= index) & (latest <= index)).flatten().nonzero().squeeze(1).tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], lo.numel()], strict=True)]
