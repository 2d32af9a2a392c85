"""Keys and values of what has been read so far, so that a sampler never computes them twice."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.model.attention import Attend, dense_under
from lit_transfusion.model.visibility import Visibility, run_starts


class KVCache:
    """One row of slots for each document; what stands at position s of a document is in slot s of its row.

    So rows need not be of one length, nor grow at one pace. A slot that holds nothing yet, or what was only tried (a
    padding, an image that is still noise), needs no mark: it comes after all that has been read, where nobody looks,
    and is written over when its position is read in earnest.

    Args:
        buffers: (layers, 2, B, heads, S, head_dim) keys and values.
        image_ids: (B, S) int64; at the patches of an image the position of its first, negative elsewhere.
    """

    def __init__(self, buffers: Tensor, image_ids: Tensor) -> None:
        self.buffers = buffers
        self.image_ids = image_ids

    @classmethod
    def empty(
        cls,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        head_dim: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KVCache":
        buffers = torch.zeros(n_layers, 2, batch_size, n_heads, capacity, head_dim, device=device, dtype=dtype)
        return cls(buffers, torch.full((batch_size, capacity), -1, device=device))

    def first(self, batch_size: int, length: int) -> "KVCache":
        """The first rows and slots: a view, so that a forward pass looks at no more than there is."""
        return KVCache(self.buffers[:, :, :batch_size, :, :length], self.image_ids[:batch_size, :length])

    def take_over(self, rows: Sequence[int], other: "KVCache", other_rows: Sequence[int]) -> None:
        """Copy rows of another cache, as many slots as both have."""
        length = min(self.image_ids.shape[1], other.image_ids.shape[1])
        self.buffers[:, :, rows, :, :length] = other.buffers[:, :, other_rows, :, :length]
        self.image_ids[rows, :length] = other.image_ids[other_rows, :length]

    def open(self, mask: Visibility, positions: Tensor, image_ids: Tensor) -> Attend:
        """Make way for what a forward pass reads at (B, L) positions; image_ids tell its images apart.

        Returns the `attend` under which it sees what stands before it, and itself.
        """
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self._slots = rows, positions
        first_patches = positions.gather(1, run_starts(image_ids))
        self.image_ids[self._slots] = torch.where(image_ids >= 0, first_patches, -1)
        # The rule is asked about the whole document, and answers for what is new.
        intervals = mask.intervals(torch.zeros_like(self.image_ids), self.image_ids)
        lo, hi = (bound.gather(1, positions)[..., None] for bound in intervals)  # (B, L, 1)
        slot = torch.arange(self.image_ids.shape[1], device=positions.device)
        return dense_under((slot >= lo) & (slot < hi))  # (B, L, S)

    def layer(self, index: int, attend: Attend) -> "LayerCache":
        """`attend` in one layer, to what is read now and to what stands there already."""
        return LayerCache(self.buffers[index], self._slots, attend)


class LayerCache:
    """One layer's part of a KVCache, while a forward pass writes to `slots`, which are (row, position) pairs."""

    def __init__(self, buffer: Tensor, slots: tuple[Tensor, Tensor], attend: Attend) -> None:
        self.buffer = buffer
        self.slots = slots
        self.attend = attend

    @torch.compiler.disable  # S grows: where a block is compiled, this stays outside
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the new keys and values, (B, heads, L, head_dim), and attend to all, (B, heads, S, head_dim)."""
        for buffer, new in zip(self.buffer, (k, v), strict=True):
            buffer.transpose(1, 2)[self.slots] = new.transpose(1, 2)
        return self.attend(q, self.buffer[0], self.buffer[1])
