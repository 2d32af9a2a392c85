"""Attention backends, and the choice between them.

A backend is a function of the intervals. It is called once per forward pass, does the work that all layers share, and
returns `attend(q, k, v)`. All backends give the same outputs and gradients.
"""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from lit_transfusion.errors import InputError
from lit_transfusion.model.query_blocks import key_windows, query_blocks
from lit_transfusion.model.visibility import FLEX_BLOCK, block_mask, cuts, dense_mask, not_hidden

log = logging.getLogger(__name__)

# q → output, (B, heads, L, head_dim), from k and v, (B, kv_heads, L, head_dim)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(backend: str, lo: Tensor, hi: Tensor, dtype: torch.dtype, private: Tensor | None = None) -> Attend:
    """Return the function that all layers of a forward pass call.

    Args:
        backend: One of BACKENDS, or `auto` for the fastest one on this device.
        lo: (B, L) first key that each query sees.
        hi: (B, L) one past the last.
        dtype: Type of the hidden states. Autocast may still lower it.
        private: (B, L) private images of the patches (see `visibility.py`).
    """
    if backend == "auto":
        backend = fastest(lo.device.type, lo.shape[1], dtype)
    return BACKENDS[backend](lo, hi, private)


@functools.cache  # so that each choice is logged once
def fastest(device: str, length: int, dtype: torch.dtype) -> str:
    """Choose the backend for rows of `length` positions. Training and inference use the same one.

    On a CPU, `dense` is faster for short rows and `split` for rows of more than about 150 positions; FlexAttention is
    slower and has no backward pass. On a GPU, FlexAttention is the fastest from about 1,000 positions; it requires
    whole tiles and does not support float64. (docs/benchmarks.md, `attention`)
    """
    if device == "cpu":
        backend = "dense" if length <= 128 else "split"
    elif length >= 1024 and length % FLEX_BLOCK == 0 and dtype != torch.float64:
        backend = "flex"
    else:
        backend = "dense"
    log.info("attention: %s, for rows of %d positions in %s on %s", backend, length, str(dtype)[6:], device)
    return backend


def eager(lo: Tensor, hi: Tensor, private: Tensor | None = None) -> Attend:
    """Compute softmax attention step by step in float32. This is the reference for the tests of the other backends."""
    hidden = ~dense_mask(lo, hi, private)[:, None]  # (B, 1, L, L)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = for_all_heads(q, k, v)
        scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, heads, L, L)
        return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v.float()).to(q.dtype)

    return attend


def dense(lo: Tensor, hi: Tensor, private: Tensor | None = None) -> Attend:
    """Call scaled_dot_product_attention with an L × L mask. It runs on every device, but computes hidden pairs too."""
    return dense_under(dense_mask(lo, hi, private))


def dense_under(mask: Tensor) -> Attend:
    """Call scaled_dot_product_attention with a (B, queries, keys) bool mask, the same for all heads."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, *for_all_heads(q, k, v), attn_mask=mask[:, None])

    return attend


def for_all_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat the heads of keys and values for the query heads that share them (grouped-query attention).

    On a CPU, SDPA's own `enable_gqa` leaves the fast kernel.
    """
    shared_by = q.shape[1] // k.shape[1]
    if shared_by == 1:
        return k, v
    return k.repeat_interleave(shared_by, dim=1), v.repeat_interleave(shared_by, dim=1)


def split(lo: Tensor, hi: Tensor, private: Tensor | None = None) -> Attend:
    """Call scaled_dot_product_attention on blocks of queries and the keys that they see: the fastest way on a CPU.

    A document is one block, or several if it is long: each of them sees only part of it.
    """
    lengths = cuts(lo, hi)
    row_start = torch.arange(0, lo.numel(), lo.shape[1], device=lo.device)[:, None]
    lo, hi = (lo + row_start).flatten(), (hi + row_start).flatten()  # in rows that are laid end to end
    blocks = query_blocks(lo, hi, lengths)
    key = torch.arange(len(lo), device=lo.device)
    bounds = zip(lo.split(blocks.lengths), hi.split(blocks.lengths), blocks.windows, strict=True)
    masks = [
        (key[start:stop] >= first[:, None]) & (key[start:stop] < last[:, None]) for first, last, (start, stop) in bounds
    ]
    if private is not None:
        owners = zip(private.flatten().split(blocks.lengths), blocks.windows, strict=True)
        for mask, (own, (start, stop)) in zip(masks, owners, strict=True):
            mask &= not_hidden(own, private.flatten()[start:stop])

    @torch.compiler.disable  # the lengths change with each batch, so compiled blocks exclude this
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, _, L, _ = q.shape
        k, v = for_all_heads(q, k, v)
        q, k, v = (x.transpose(0, 1).flatten(1, 2) for x in (q, k, v))  # (heads, B · L, head_dim)
        parts = q.split(blocks.lengths, dim=1), key_windows(k, blocks), key_windows(v, blocks)
        outputs = [
            F.scaled_dot_product_attention(q_i[None], k_i[None], v_i[None], attn_mask=mask)[0]
            for q_i, k_i, v_i, mask in zip(*parts, masks, strict=True)
        ]
        return torch.cat(outputs, dim=1).unflatten(1, (B, L)).transpose(0, 1)

    return attend


def flex(lo: Tensor, hi: Tensor, private: Tensor | None = None) -> Attend:
    """Call FlexAttention on the visible blocks. This is the fastest way on a GPU; on a CPU it has no backward pass."""
    length = lo.shape[1]
    if length % FLEX_BLOCK:
        raise InputError(
            f"attention: flex requires rows of a multiple of {FLEX_BLOCK} positions, not {length}; change "
            "data.sequence_length, or use another backend"
        )
    kernel: Callable[..., Tensor] = flex_attention
    if lo.is_cuda:
        kernel = _compiled_flex()
    blocks = block_mask(lo, hi, private)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernel(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])

    return attend


BACKENDS: dict[str, Callable[..., Attend]] = {f.__name__: f for f in (eager, dense, split, flex)}


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)
