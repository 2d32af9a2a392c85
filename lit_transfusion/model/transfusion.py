"""The whole net: embeddings, patcher, Transformer and head."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from lit_transfusion.model.attention import attention
from lit_transfusion.model.kv_cache import KVCache
from lit_transfusion.model.patchers import Patcher
from lit_transfusion.model.transformer import Transformer, TransformerSize, init_linear
from lit_transfusion.model.visibility import Visibility


class TransfusionOutput(NamedTuple):
    logits: Tensor  # (T, V) at the T logit_positions
    image_prediction: Tensor  # (N, C, H, W): noise, velocity or clean image, see the noise process


@final
class Transfusion(nn.Module):
    """One Transformer over text tokens and image patches, with small modality-specific layers around it (paper, 3.2).

    Args:
        vocab_size: V, including the markers BOI and EOI.
        size: Widths and depths of the Transformer.
        patcher: Converts images to patch vectors and back; its `dim` must be that of `size`.
        mask: The visibility rule: which positions attend to which.
        rope_theta: Base of the rotary position embedding.
        attention: Attention backend: auto, eager, dense, split or flex (see `attention.py`).
    """

    def __init__(
        self,
        vocab_size: int,
        size: TransformerSize,
        patcher: Patcher,
        mask: Visibility,
        rope_theta: float = 10_000.0,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        if patcher.dim != size.dim:
            raise ValueError(f"the patcher's dim is {patcher.dim}, the Transformer's {size.dim}; they must be equal")
        self.mask = mask
        self.attention = attention
        self.embedding = nn.Embedding(vocab_size, size.dim)
        self.time_embedding = TimestepEmbedding(size.dim)
        self.patcher = patcher
        self.transformer = Transformer(size, rope_theta)
        self.head = nn.Linear(size.dim, vocab_size, bias=False)
        self.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        document_ids: Tensor,
        image_ids: Tensor,
        images: Tensor,
        timesteps: Tensor,
        logit_positions: Tensor,
        cache: KVCache | None = None,
    ) -> TransfusionOutput:
        """Predict the next tokens, and the target of the noise process for each image.

        Args:
            tokens: (B, L) int64; the values at patches are ignored.
            positions: (B, L) int64 within the document.
            document_ids: (B, L) int64; ignored with a cache, where each row is one document.
            image_ids: (B, L) int64, index into `images` at patches, negative elsewhere. Patches are in raster order.
            images: (N, C, H, W) noisy images, in row-major order of their places in the rows. N may be 0: training
                still computes the image path, so that each parameter has a gradient on every rank.
            timesteps: (N,) int64, the noise level of each image.
            logit_positions: (T,) int64 indices into the flattened (B · L) positions. Logits are computed only there,
                because the head is the widest layer of the net.
            cache: The prefix of each row, for decoding. The given positions are added to it.
        """
        x = self.embedding(tokens)  # (B, L, D)
        text_only = cache is not None and len(images) == 0  # decoding needs no gradients: skip the image path
        if not text_only:
            t_emb = self.time_embedding(timesteps)  # (N, D)
            patches, skips = self.patcher.patchify(images, t_emb)  # (N, P, D)
            # One position per patch, in the order of the images. The size is given so that a GPU need not synchronise.
            at_patches = torch.nonzero_static(image_ids.flatten() >= 0, size=patches.shape[0] * patches.shape[1])[:, 0]
            x = x.flatten(0, 1).index_copy(0, at_patches, patches.flatten(0, 1).to(x.dtype)).view_as(x)

        if cache is None:
            lo, hi = self.mask.intervals(document_ids, image_ids)
            attend = attention(self.attention, lo, hi, x.dtype)  # once, for all layers
        else:
            attend = cache.open(self.mask, positions, image_ids)
        hidden = self.transformer(x, positions, attend, cache).flatten(0, 1)  # (B · L, D)

        logits = self.head(hidden.index_select(0, logit_positions))  # (T, V)
        if text_only:
            return TransfusionOutput(logits, images)
        grid = (images.shape[-2] // self.patcher.patch_size, images.shape[-1] // self.patcher.patch_size)
        hidden = hidden.index_select(0, at_patches).view_as(patches)  # (N, P, D)
        return TransfusionOutput(logits, self.patcher.unpatchify(hidden, t_emb, skips, grid))

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Create an empty cache of `batch_size` rows with `capacity` positions each."""
        size, device = self.transformer.size, self.head.weight.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.head.weight.dtype  # of keys and values
        head_dim = size.dim // size.n_heads
        return KVCache.empty(size.n_layers, batch_size, size.n_heads, head_dim, capacity, device, dtype)

    def reset_parameters(self) -> None:
        """Initialise all weights except the patcher's (see `Transformer.reset_parameters` for the reasons)."""
        self.transformer.reset_parameters()
        self.time_embedding.reset_parameters()
        init_linear(self.head)
        # An embedding row is not summed with others: 1/√D gives it norm 1, and pre-norm makes its scale harmless.
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)


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
