"""Keys and values of what has been read so far, so that a sampler never computes them twice."""

import torch
from torch import Tensor

from lit_transfusion.model.attention import Attend, dense_under
from lit_transfusion.model.visibility import Visibility

HOLE = 2**40  # the position of a slot that holds nothing: beyond what anyone sees


class KVCache:
    """A buffer of `capacity` slots for each row. One row is one document.

    All rows write to the same slots; a row with less to say leaves holes. The order of slots does not matter, since
    each remembers its position, and the visibility rule speaks of positions.

    Args:
        n_layers: Layers of the Transformer.
        batch_size: Rows.
        n_heads: Attention heads.
        head_dim: Width of a head.
        capacity: Slots in each row.
        device: Where the buffers are.
        dtype: Of keys and values.
    """

    def __init__(
        self, n_layers: int, batch_size: int, n_heads: int, head_dim: int, capacity: int, device, dtype
    ) -> None:
        self.buffers = torch.zeros(n_layers, 2, batch_size, n_heads, capacity, head_dim, device=device, dtype=dtype)
        self.positions = torch.full((batch_size, capacity), HOLE, device=device)  # of each slot
        self.image_ids = torch.full((batch_size, capacity), -1, device=device)  # at each position
        self.length = 0  # slots in use

    def open(self, mask: Visibility, positions: Tensor, image_ids: Tensor, holes: Tensor) -> Attend:
        """Make room for new (B, L) positions; `holes` (B, L) is True where a row has nothing to say.

        Nothing is kept until `keep` is called: the next `open` writes to the same slots, as denoising does.
        Returns the `attend` under which the new positions see the cached ones and one another.
        """
        end = self.length + positions.shape[1]
        if end > self.positions.shape[1]:
            raise ValueError(f"the cache holds {self.positions.shape[1]} positions, {end} are needed")
        self._slots = slice(self.length, end)
        self.positions[:, self._slots] = positions.masked_fill(holes, HOLE)
        unused_id = self.length * len(positions)  # no smaller than the number of images so far
        image_ids = torch.where((image_ids >= 0) & ~holes, image_ids + unused_id, -1)
        self.image_ids.scatter_(1, positions, image_ids)
        # The rule is asked about the whole document, in the order of positions, and answers for the new ones.
        document = self.image_ids[:, :end]
        lo, hi = (x.gather(1, positions)[..., None] for x in mask.intervals(torch.zeros_like(document), document))
        key = self.positions[:, None, :end]
        return dense_under((key >= lo) & (key < hi) | holes[..., None])  # (B, L, S); holes see all, so none is NaN

    def forget(self, lengths: Tensor) -> None:
        """Forget what each row holds from position `lengths` (B,) on."""
        index = torch.arange(self.image_ids.shape[1], device=lengths.device)
        self.positions.masked_fill_(self.positions >= lengths[:, None], HOLE)
        self.image_ids.masked_fill_(index >= lengths[:, None], -1)

    def keep(self) -> None:
        """Take what the last forward pass wrote into the prefix."""
        self.length = self._slots.stop

    def layer(self, index: int) -> "LayerCache":
        return LayerCache(self.buffers[index], self._slots)


class LayerCache:
    """One layer's part of a KVCache, while a forward pass writes to `slots`."""

    def __init__(self, buffer: Tensor, slots: slice) -> None:
        self.buffer = buffer
        self.slots = slots

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, L, head_dim) new keys and values → all of them, (B, heads, S, head_dim)."""
        self.buffer[0, :, :, self.slots] = k
        self.buffer[1, :, :, self.slots] = v
        return self.buffer[0, :, :, : self.slots.stop], self.buffer[1, :, :, : self.slots.stop]
