"""Visibility rules (attention masks): which keys each query attends to.

Every query of a Transfusion sequence sees one interval of keys [lo, hi): `lo` is the start of its document; `hi` is
q + 1 for text and the end of the image for a patch (paper, 3.3 and Figure 4). An image may also be private: then only
its own patches see it, such as a noised copy beside a clean one (BAGEL). These three integers per position define the
whole mask, and all other forms are computed from them:

    lo, hi = Bidirectional().intervals(document_ids, image_ids)
    dense_mask(lo, hi)    # (B, L, L) bool: tests, small inputs, pictures
    block_mask(lo, hi)    # FlexAttention, computed without L × L values
    cuts(lo, hi)          # lengths of the pieces that do not see each other

`private` is None if no image is private; else it is the image's number at its private patches, and negative elsewhere.

A new rule is a class with one method; its name is then a value of `model.mask` in YAML.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

FLEX_BLOCK = 128  # FlexAttention's tile; the row length must be a multiple of it

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # row, head, query, key → whether the query sees the key


class Visibility:
    """Base class of visibility rules. Every position must see itself."""

    def intervals(self, document_ids: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, L) ids to `lo` and `hi`, both (B, L): position q attends to the keys lo[q] ≤ k < hi[q] of its row."""
        raise NotImplementedError


class Causal(Visibility):
    """Every position, text or patch, sees only itself and earlier ones ("causal" in the paper's Table 5)."""

    def intervals(self, document_ids: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
        return run_starts(document_ids), index + 1


class Bidirectional(Visibility):
    """Causal over the sequence, bidirectional inside each image (paper, 3.3; "bidirectional" in its Table 5)."""

    def intervals(self, document_ids: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        lo, hi = Causal().intervals(document_ids, image_ids)
        return lo, torch.where(image_ids >= 0, run_ends(image_ids), hi)


def run_starts(ids: Tensor) -> Tensor:
    """Return, for each position of (B, L), the index at which its run of equal ids starts."""
    index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return torch.where(begins, index, 0).cummax(dim=1).values


def run_ends(ids: Tensor) -> Tensor:
    """Return, for each position of (B, L), the index one past its run of equal ids."""
    return ids.shape[1] - run_starts(ids.flip(1)).flip(1)


def dense_mask(lo: Tensor, hi: Tensor, private: Tensor | None = None) -> Tensor:
    """Map (B, L) intervals to (B, L, L) bool, True where the query (second axis) sees the key (last axis)."""
    key = torch.arange(lo.shape[1], device=lo.device)
    seen = (key >= lo[..., None]) & (key < hi[..., None])
    return seen if private is None else seen & not_hidden(private, private)


def not_hidden(queries: Tensor, keys: Tensor) -> Tensor:
    """Map the private images of (…, Q) queries and of (…, K) keys to (…, Q, K) bool, False where a key is hidden."""
    keys = keys[..., None, :]
    return (keys < 0) | (keys == queries[..., None])


def mask_mod(lo: Tensor, hi: Tensor, private: Tensor | None = None) -> MaskMod:
    """Map (B, L) intervals to the predicate that FlexAttention evaluates inside a partly visible block."""

    def in_interval(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= lo[b, q]) & (k < hi[b, q])

    if private is None:
        return in_interval

    def not_hidden(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return in_interval(b, h, q, k) & ((private[b, k] < 0) | (private[b, k] == private[b, q]))

    return not_hidden


def block_mask(lo: Tensor, hi: Tensor, private: Tensor | None = None) -> BlockMask:
    """Map (B, L) intervals to a BlockMask, in O((L / 128)²). L must be a multiple of 128.

    Every interval contains its query, so the intervals of neighbouring queries overlap. A block of queries therefore
    also sees one interval: [min lo, max hi) by at least one query, and [max lo, min hi) by all of them. A block with
    private keys is never seen by all.
    """
    lo_blocks, hi_blocks = lo.unflatten(1, (-1, FLEX_BLOCK)), hi.unflatten(1, (-1, FLEX_BLOCK))
    first = torch.arange(0, lo.shape[1], FLEX_BLOCK, device=lo.device)  # first key of each key block
    last = first + FLEX_BLOCK
    some = (lo_blocks.amin(2)[..., None] < last) & (hi_blocks.amax(2)[..., None] > first)  # (B, q blocks, k blocks)
    full = (lo_blocks.amax(2)[..., None] <= first) & (hi_blocks.amin(2)[..., None] >= last)
    if private is not None:
        full &= (private < 0).unflatten(1, (-1, FLEX_BLOCK)).all(2)[:, None]
    return BlockMask.from_kv_blocks(
        *_packed_indices(some & ~full),
        *_packed_indices(full),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=mask_mod(lo, hi, private),
    )


def _packed_indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Map (B, q blocks, k blocks) bool to the number of True in each row, and the indices with those first."""
    count = blocks.sum(2, dtype=torch.int32)
    indices = blocks.to(torch.int8).argsort(dim=2, descending=True, stable=True).to(torch.int32)
    return count[:, None], indices[:, None].contiguous()  # one mask for all heads


def cuts(lo: Tensor, hi: Tensor) -> list[int]:
    """Return the lengths of the pieces into which B rows of L positions, laid end to end, can be cut.

    A row can be cut before position s if no interval crosses s: neither s nor a later query sees a key before s, and no
    earlier query sees s. With the paper's masks the pieces are the documents.
    """
    index = torch.arange(lo.shape[1], device=lo.device)
    earliest = lo.flip(1).cummin(dim=1).values.flip(1)  # the earliest key that query s or a later one sees
    latest = torch.cat([torch.zeros_like(hi[:, :1]), hi.cummax(dim=1).values[:, :-1]], dim=1)
    starts = ((earliest >= index) & (latest <= index)).flatten().nonzero().squeeze(1).tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], lo.numel()], strict=True)]
