"""Keys and values of what has been read so far, so that a sampler never computes them twice."""

import torch
from torch import Tensor

from lit_transfusion.model.attention import Attend, dense_under

HOLE = 2**40  # the position of a slot that holds nothing: beyond what anyone sees


class KVCache:
    """A buffer of `capacity` slots for each row. One row is one document.

    All rows write to the same slots; a row with less to say leaves holes. The order of slots does not matter, since
    each remembers its position, and the visibility rule is asked about positions.

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
        self.positions = torch.full((batch_size, capacity), HOLE, device=device)
        self.length = 0  # slots in use

    def open(self, positions: Tensor, reach: Tensor, holes: Tensor) -> Attend:
        """Make room for (B, L) new positions of which each sees `reach` keys from itself on (1: only itself).

        Nothing is kept until `keep` is called: the next `open` writes to the same slots, as denoising does.
        Returns the `attend` under which the new positions see the cached ones and one another.
        """
        end = self.length + positions.shape[1]
        if end > self.positions.shape[1]:
            raise ValueError(f"the cache holds {self.positions.shape[1]} positions, {end} are needed")
        self._slots = slice(self.length, end)
        self.positions[:, self._slots] = positions.masked_fill(holes, HOLE)
        return dense_under(self.positions[:, None, :end] < (positions + reach)[..., None])  # (B, L, S)

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
