"""The whole net: embeddings, patcher, Transformer and head."""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from lit_transfusion.model.attention import attention
from lit_transfusion.model.config import TransformerConfig
from lit_transfusion.model.kv_cache import KVCache
from lit_transfusion.model.patchers import Patcher
from lit_transfusion.model.rotary import rows_and_columns
from lit_transfusion.model.transformer import Transformer, init_linear
from lit_transfusion.model.visibility import Visibility


class NoisyImages(NamedTuple):
    """Images of one shape. A sequence may contain images of several shapes."""

    values: Tensor  # (N, C, H, W)
    timesteps: Tensor  # (N,) the noise level of each image
    at: Tensor  # (N, P) int64; indices of their patches into the flattened (B · L) positions, in raster order


class TransfusionOutput(NamedTuple):
    logits: Tensor  # (T, V) at the T logit_positions
    image_predictions: tuple[Tensor, ...]  # for each shape (N, C, H, W): noise, velocity or clean image
    patch_states: tuple[Tensor, ...] = ()  # for each shape (N, P, D) after block `state_layer`; empty without one


@final
class Transfusion(nn.Module):
    """One Transformer over text tokens and image patches, with small modality-specific layers around it (paper, 3.2).

    Args:
        vocab_size: V, including the markers BOI and EOI, and the codes if images are tokens.
        config: Widths, depth and variants of the Transformer.
        patcher: Converts images to patch vectors and back; its `dim` must be that of `config`.
        mask: The visibility rule: which positions attend to which.
        attention: Attention backend: auto, eager, dense, split or flex (see `attention.py`).
    """

    def __init__(
        self,
        vocab_size: int,
        config: TransformerConfig,
        patcher: Patcher,
        mask: Visibility,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        if patcher.dim != config.dim:
            raise ValueError(f"the patcher's dim is {patcher.dim}, the Transformer's {config.dim}; they must be equal")
        self.mask = mask
        self.attention = attention
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.time_embedding = nn.Identity() if patcher.images_are_tokens else TimestepEmbedding(config.dim)
        self.patcher = patcher
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.dim, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        document_ids: Tensor,
        image_ids: Tensor,
        images: Sequence[NoisyImages],
        logit_positions: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        private: Tensor | None = None,
        state_layer: int | None = None,
    ) -> TransfusionOutput:
        """Predict the next tokens, and the target of the noise process for each image.

        Args:
            tokens: (B, L) int64; the values at patches are ignored.
            positions: (B, L) int64 within the document.
            document_ids: (B, L) int64; ignored with a cache, where each row is one document.
            image_ids: (B, L) int64, a number for each image at its patches, negative elsewhere.
            images: The images, one group for each shape. Training needs at least one group, which may be empty (N = 0):
                each parameter then has a gradient on every rank. Decoding needs none. There are none if images are
                tokens.
            logit_positions: (T,) int64 indices into the flattened (B · L) positions. Logits are computed only there,
                because the head is the widest layer of the net.
            cache: The prefix of each row, for decoding. The given positions are added to it.
            slots: (B, L) int64, the place of each position in the cache; None if it is the position. Two copies of an
                image have the same positions.
            private: (B, L) int64, the `image_ids` of patches that only their own image sees, negative elsewhere; None
                if there are none.
            state_layer: Number of the block, from 1, whose hidden states of patches are returned; None for no block.
        """
        x = self.embedding(tokens)  # (B, L, D)
        coordinates = positions[..., None]  # (B, L, axes)
        if self.transformer.config.rope == "2d":
            coordinates = coordinates.expand(-1, -1, 2).float()
        inputs = []
        for values, timesteps, at in images:
            t_emb = self.time_embedding(timesteps)  # (N, D)
            patches, skips = self.patcher.patchify(values, t_emb)  # (N, P, D)
            x = place(x, at, patches)
            grid = self.patcher.grid(values)
            if self.transformer.config.rope == "2d":
                coordinates = place(coordinates, at, rows_and_columns(positions.flatten()[at], grid))
            inputs.append((at.flatten(), patches.shape, t_emb, skips, grid))

        if cache is None:
            lo, hi = self.mask.intervals(document_ids, image_ids)
            attend = attention(self.attention, lo, hi, x.dtype, private)  # once, for all layers
        else:
            attend = cache.open(self.mask, positions if slots is None else slots, image_ids, private)
        kept = None if state_layer is None else {state_layer: x}
        hidden = self.transformer(x, coordinates, image_ids >= 0, attend, cache, kept).flatten(0, 1)  # (B · L, D)

        logits = self.head(hidden.index_select(0, logit_positions))  # (T, V)
        predictions = [
            self.patcher.unpatchify(hidden.index_select(0, at).view(shape), t_emb, skips, grid)  # (N, C, H, W)
            for at, shape, t_emb, skips, grid in inputs
        ]
        if kept is None or state_layer is None:
            return TransfusionOutput(logits, tuple(predictions))
        states = kept[state_layer].flatten(0, 1)  # (B · L, D)
        of_patches = tuple(states.index_select(0, at).view(shape) for at, shape, *_ in inputs)
        return TransfusionOutput(logits, tuple(predictions), of_patches)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Create an empty cache of `batch_size` rows with `capacity` positions each."""
        config, device = self.transformer.config, self.head.weight.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.head.weight.dtype  # of keys and values
        shape = (config.n_layers, batch_size, config.kv_heads, config.head_dim)
        return KVCache.empty(*shape, capacity, device, dtype)

    def reset_parameters(self) -> None:
        """Initialise all weights except the patcher's (see `Transformer.reset_parameters` for the reasons)."""
        self.transformer.reset_parameters()
        if isinstance(self.time_embedding, TimestepEmbedding):
            self.time_embedding.reset_parameters()
        init_linear(self.head)
        # An embedding row is not summed with others: 1/√D gives it norm 1, and pre-norm makes its scale harmless.
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)


def place(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """A copy of x (B, L, D) with values (N, P, D) at the flattened positions (N, P)."""
    return x.flatten(0, 1).index_copy(0, at.flatten(), values.flatten(0, 1).to(x.dtype)).view_as(x)


class TimestepEmbedding(nn.Module):
    """Maps a timestep to a vector: sinusoids, then a two-layer perceptron.

    It is that of DiT, which fits the parameter counts of the paper's Table 7.

    Args:
        dim: Width D of the result.
        frequencies: Number of sinusoids.
    """

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, timesteps: Tensor) -> Tensor:
        """(N,) timesteps → (N, D) vectors."""
        half = self.frequencies // 2
        rates = 10_000.0 ** -(torch.arange(half, device=timesteps.device) / half)
        angles = timesteps[:, None] * rates  # (N, half)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(sinusoids.to(next(self.mlp.parameters()).dtype))

    def reset_parameters(self) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                init_linear(layer)
