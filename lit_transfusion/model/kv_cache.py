"""Cache of keys and values, so that decoding computes each of them once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.model.attention import Attend, dense_under
from lit_transfusion.model.visibility import Visibility, not_hidden, run_starts


class KVCache:
    """One row of slots per document, in its order.

    Rows may have different lengths. Provisional slots (empty ones, padding, an image that is still noise) need no mark:
    they lie past the end of the document, are never attended to, and are overwritten later.

    Args:
        buffers: (layers, 2, B, kv_heads, S, head_dim) keys and values.
        ids: (2, B, S) int64; at each patch the slot of the first patch of its image, negative elsewhere; and the same
            for patches that only their own image sees.
    """

    def __init__(self, buffers: Tensor, ids: Tensor) -> None:
        self.buffers = buffers
        self.ids = ids

    @classmethod
    def empty(
        cls,
        n_layers: int,
        batch_size: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KVCache":
        buffers = torch.zeros(n_layers, 2, batch_size, kv_heads, capacity, head_dim, device=device, dtype=dtype)
        return cls(buffers, torch.full((2, batch_size, capacity), -1, device=device))

    def first(self, batch_size: int, length: int) -> "KVCache":
        """Return a view of the first rows and slots, so that a forward pass does not read empty slots."""
        return KVCache(self.buffers[:, :, :batch_size, :, :length], self.ids[:, :batch_size, :length])

    def take_over(self, rows: Sequence[int], other: "KVCache", other_rows: Sequence[int]) -> None:
        """Copy rows of another cache, up to the smaller of the two lengths."""
        length = min(self.ids.shape[2], other.ids.shape[2])
        self.buffers[:, :, rows, :, :length] = other.buffers[:, :, other_rows, :, :length]
        self.ids[:, rows, :length] = other.ids[:, other_rows, :length]

    def open(self, mask: Visibility, slots: Tensor, image_ids: Tensor, private: Tensor | None = None) -> Attend:
        """Prepare slots for a forward pass, and return its `attend`.

        The new positions attend to the cached ones and to each other, as `mask` allows.

        Args:
            mask: The visibility rule.
            slots: (B, L) int64, the slots to be written; the patches of an image are consecutive.
            image_ids: (B, L) int64, one number per image at its patches, negative elsewhere.
            private: (B, L) int64, the same at the patches that only their own image sees; None if there are none.
        """
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        self._slots = rows, slots
        first_patches = slots.gather(1, run_starts(image_ids))
        for ids, new in zip(self.ids, (image_ids, private), strict=True):
            ids[self._slots] = -1 if new is None else torch.where(new >= 0, first_patches, -1)
        # Compute the intervals of the whole document, and keep those of the new positions.
        cached_ids, cached_private = self.ids
        intervals = mask.intervals(torch.zeros_like(cached_ids), cached_ids)
        lo, hi = (bound.gather(1, slots)[..., None] for bound in intervals)  # (B, L, 1)
        key = torch.arange(cached_ids.shape[1], device=slots.device)
        seen = (key >= lo) & (key < hi) & not_hidden(cached_private.gather(1, slots), cached_private)  # (B, L, S)
        return dense_under(seen)

    def layer(self, index: int, attend: Attend) -> "LayerCache":
        """Return the `attend` of one layer, over the cached and the new positions."""
        return LayerCache(self.buffers[index], self._slots, attend)


class LayerCache:
    """The part of a KVCache for one layer. A forward pass writes to `slots`: their rows and their indices."""

    def __init__(self, buffer: Tensor, slots: tuple[Tensor, Tensor], attend: Attend) -> None:
        self.buffer = buffer
        self.slots = slots
        self.attend = attend

    @torch.compiler.disable  # S grows, so compiled blocks exclude this
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Save the new keys and values, (B, kv_heads, L, head_dim), and attend to all, (B, kv_heads, S, head_dim)."""
        for buffer, new in zip(self.buffer, (k, v), strict=True):
            buffer.transpose(1, 2)[self.slots] = new.transpose(1, 2)
        return self.attend(q, self.buffer[0], self.buffer[1])
