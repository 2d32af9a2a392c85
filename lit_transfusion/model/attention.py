"""Attention under a visibility rule, and the one place where its backend is chosen.

A backend is a function of the intervals. It is called once for each forward pass, does whatever work all layers can
share, and returns `attend(q, k, v)`. All backends give the same outputs and gradients.
"""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from lit_transfusion.errors import InputError
from lit_transfusion.model.visibility import FLEX_BLOCK, block_mask, cuts, dense_mask

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v → output, all (B, heads, L, head_dim)


def attention(backend: str, lo: Tensor, hi: Tensor, dtype: torch.dtype) -> Attend:
    """What all layers of a forward pass call, under the (B, L) intervals.

    Args:
        backend: One of BACKENDS, or `auto` for the fastest one here.
        lo: First key that each query sees.
        hi: One past the last key that each query sees.
        dtype: Of the hidden states, which autocast may still lower.
    """
    return BACKENDS[fastest(lo.device.type, lo.shape[1], dtype) if backend == "auto" else backend](lo, hi)


@functools.cache  # so that each choice is logged once
def fastest(device: str, length: int, dtype: torch.dtype) -> str:
    """The backend for rows of `length` positions, the same for training and without gradients.

    On a CPU, short rows are cheaper in one piece (the crossing is at some 150 positions), longer ones document by
    document; FlexAttention is slower there, and has no backward pass. On a GPU it is the fastest from some 1,000
    positions on; it needs whole tiles, and knows no float64. (docs/benchmarks.md, `attention`)
    """
    if device == "cpu":
        backend = "dense" if length <= 128 else "split"
    elif length >= 1024 and length % FLEX_BLOCK == 0 and dtype != torch.float64:
        backend = "flex"
    else:
        backend = "dense"
    log.info("attention: %s, for rows of %d positions in %s on %s", backend, length, str(dtype)[6:], device)
    return backend


def eager(lo: Tensor, hi: Tensor) -> Attend:
    """Softmax written out in float32: the reference that the other backends are tested against."""
    hidden = ~dense_mask(lo, hi)[:, None]  # (B, 1, L, L)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, heads, L, L)
        return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v.float()).to(q.dtype)

    return attend


def dense(lo: Tensor, hi: Tensor) -> Attend:
    """PyTorch's scaled_dot_product_attention under an L × L mask: runs anywhere, pays for what is not visible."""
    return dense_under(dense_mask(lo, hi))


def dense_under(mask: Tensor) -> Attend:
    """scaled_dot_product_attention under a (B, queries, keys) bool mask, the same for all heads."""
    return functools.partial(F.scaled_dot_product_attention, attn_mask=mask[:, None])


def split(lo: Tensor, hi: Tensor) -> Attend:
    """scaled_dot_product_attention on one document at a time: the fast way on a CPU.

    `torch.split`, not slices: the backward pass of a split is one concatenation, that of each slice a full-size write.
    """
    lengths = cuts(lo, hi)
    key = torch.arange(lo.shape[1], device=lo.device).expand_as(lo)
    pieces = zip(*(x.flatten().split(lengths) for x in (key, lo, hi)), strict=True)
    masks = [(k >= piece_lo[:, None]) & (k < piece_hi[:, None]) for k, piece_lo, piece_hi in pieces]

    @torch.compiler.disable  # the lengths are others in each batch: where a block is compiled, this stays outside
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, _, L, _ = q.shape
        # (B, heads, L, head_dim) → the pieces' (heads, length, head_dim); a cut never runs across two rows
        q, k, v = (x.transpose(0, 1).flatten(1, 2).split(lengths, dim=1) for x in (q, k, v))
        outputs = [
            F.scaled_dot_product_attention(q_i[None], k_i[None], v_i[None], attn_mask=mask)[0]
            for q_i, k_i, v_i, mask in zip(q, k, v, masks, strict=True)
        ]
        return torch.cat(outputs, dim=1).unflatten(1, (B, L)).transpose(0, 1)

    return attend


def flex(lo: Tensor, hi: Tensor) -> Attend:
    """FlexAttention on the blocks that anyone sees: the fast way on a GPU. It has no backward pass on a CPU."""
    if lo.shape[1] % FLEX_BLOCK:
        raise InputError(f"attention: flex needs rows of a multiple of {FLEX_BLOCK} positions, not {lo.shape[1]}")
    kernel: Callable[..., Tensor] = flex_attention
    if lo.is_cuda:
        kernel = _compiled_flex()
    return functools.partial(kernel, block_mask=block_mask(lo, hi))


BACKENDS: dict[str, Callable[[Tensor, Tensor], Attend]] = {f.__name__: f for f in (eager, dense, split, flex)}


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)
