"""Cache of keys and values, so that decoding computes each of them once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.model.attention import Attend, dense_under
from lit_transfusion.model.visibility import Visibility, run_starts


class KVCache:
    """One row of slots per document: position s of a document is in slot s of its row.

    Rows may have different lengths. Provisional slots (empty ones, padding, an image that is still noise) need no mark:
    they lie past the end of the document, are never attended to, and are overwritten later.

    Args:
        buffers: (layers, 2, B, kv_heads, S, head_dim) keys and values.
        image_ids: (B, S) int64; at each patch the position of the first patch of its image, negative elsewhere.
    """

    def __init__(self, buffers: Tensor, image_ids: Tensor) -> None:
        self.buffers = buffers
        self.image_ids = image_ids

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
        return cls(buffers, torch.full((batch_size, capacity), -1, device=device))

    def first(self, batch_size: int, length: int) -> "KVCache":
        """Return a view of the first rows and slots, so that a forward pass does not read empty slots."""
        return KVCache(self.buffers[:, :, :batch_size, :, :length], self.image_ids[:batch_size, :length])

    def take_over(self, rows: Sequence[int], other: "KVCache", other_rows: Sequence[int]) -> None:
        """Copy rows of another cache, up to the smaller of the two lengths."""
        length = min(self.image_ids.shape[1], other.image_ids.shape[1])
        self.buffers[:, :, rows, :, :length] = other.buffers[:, :, other_rows, :, :length]
        self.image_ids[rows, :length] = other.image_ids[other_rows, :length]

    def open(self, mask: Visibility, positions: Tensor, image_ids: Tensor) -> Attend:
        """Prepare the slots at (B, L) positions for a forward pass, and return its `attend`.

        The new positions attend to the cached ones and to each other, as `mask` allows.

        Args:
            mask: The visibility rule.
            positions: (B, L) int64 positions to be written.
            image_ids: (B, L) int64, one number per image at its patches, negative elsewhere.
        """
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self._slots = rows, positions
        first_patches = positions.gather(1, run_starts(image_ids))
        self.image_ids[self._slots] = torch.where(image_ids >= 0, first_patches, -1)
        # Compute the intervals of the whole document, and keep those of the new positions.
        intervals = mask.intervals(torch.zeros_like(self.image_ids), self.image_ids)
        lo, hi = (bound.gather(1, positions)[..., None] for bound in intervals)  # (B, L, 1)
        slot = torch.arange(self.image_ids.shape[1], device=positions.device)
        return dense_under((slot >= lo) & (slot < hi))  # (B, L, S)

    def layer(self, index: int, attend: Attend) -> "LayerCache":
        """Return the `attend` of one layer, over the cached and the new positions."""
        return LayerCache(self.buffers[index], self._slots, attend)


class LayerCache:
    """The part of a KVCache for one layer. A forward pass writes to `slots`, which are (row, position) pairs."""

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
