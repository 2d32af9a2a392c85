"""The net: embeddings, patcher, Transformer, head."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from lit_transfusion.model.attention import attention
from lit_transfusion.model.kv_cache import KVCache
from lit_transfusion.model.patchers import Patcher
from lit_transfusion.model.transformer import Transformer, TransformerSize, init_linear
from lit_transfusion.model.visibility import Visibility


class TransfusionOutput(NamedTuple):
    logits: Tensor  # (T, V) at the T positions that were asked for
    image_prediction: Tensor  # (N, C, H, W): the noise, the velocity or the clean image, as the noise process has it


@final
class Transfusion(nn.Module):
    """One Transformer over text tokens and image patches, with light parts of each modality around it (paper, 3.2).

    Args:
        vocab_size: V, the markers BOI and EOI included.
        size: Widths and depths of the Transformer.
        patcher: The way in and out for images; its `dim` is that of `size`.
        mask: The rule of who sees whom.
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
            raise ValueError(f"the patcher's dim is {patcher.dim}, the Transformer's {size.dim}")
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
        """Predict the next tokens and what the noise process asks for of each image.

        Args:
            tokens: (B, L) int64; what stands at patches is not looked at.
            positions: (B, L) int64 within the document.
            document_ids: (B, L) int64; with a cache, a row is one document and this is not looked at.
            image_ids: (B, L) int64, index into `images` at patches, negative elsewhere. Patches are in raster order.
            images: (N, C, H, W) noisy images in row-major order of their places in the rows. N may be 0: in
                training the image path is computed all the same, so that each parameter has a gradient on every rank.
            timesteps: (N,) int64, how noisy each image is.
            logit_positions: (T,) int64 indices into the flattened (B · L) positions, where logits are wanted. The
                head is the widest layer of the net; it is not computed where nobody asks.
            cache: What stands before the given positions in each row, where decoding goes on from a prefix. It takes in
                what is read now.
        """
        x = self.embedding(tokens)  # (B, L, D)
        writes = cache is not None and len(images) == 0  # only text, and no gradients: no image path either
        if not writes:
            t_emb = self.time_embedding(timesteps)  # (N, D)
            patches, skips = self.patcher.patchify(images, t_emb)  # (N, P, D)
            # As many patches as the images have, in the order of the images; the size is known: a GPU need not wait.
            at_patches = torch.nonzero_static(image_ids.flatten() >= 0, size=patches.shape[0] * patches.shape[1])[:, 0]
            x = x.flatten(0, 1).index_copy(0, at_patches, patches.flatten(0, 1).to(x.dtype)).view_as(x)

        if cache is None:
            lo, hi = self.mask.intervals(document_ids, image_ids)
            attend = attention(self.attention, lo, hi, x.dtype)  # once, for all layers
        else:
            attend = cache.open(self.mask, positions, image_ids)
        hidden = self.transformer(x, positions, attend, cache).flatten(0, 1)  # (B · L, D)

        logits = self.head(hidden.index_select(0, logit_positions))  # (T, V)
        if writes:
            return TransfusionOutput(logits, images)
        grid = (images.shape[-2] // self.patcher.patch_size, images.shape[-1] // self.patcher.patch_size)
        hidden = hidden.index_select(0, at_patches).view_as(patches)  # (N, P, D)
        return TransfusionOutput(logits, self.patcher.unpatchify(hidden, t_emb, skips, grid))

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        size, device = self.transformer.size, self.head.weight.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.head.weight.dtype  # of keys and values
        head_dim = size.dim // size.n_heads
        return KVCache.empty(size.n_layers, batch_size, size.n_heads, head_dim, capacity, device, dtype)

    def reset_parameters(self) -> None:
        """All initial values but the patcher's own (see `Transformer.reset_parameters` for the reasons)."""
        self.transformer.reset_parameters()
        self.time_embedding.reset_parameters()
        init_linear(self.head)
        # An embedding row is read alone, not summed: 1/√D gives it norm 1, and pre-norm makes its scale harmless.
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)


class TimestepEmbedding(nn.Module):
    """Timestep → vector: sinusoids, then a two-layer perceptron (DiT's; it fits the parameters of the paper's Table 7).

    Args:
        dim: Width D of the result.
        frequencies: Number of sinusoids.
    """

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, timesteps: Tensor) -> Tensor:
        """(N,) → (N, D)."""
        half = self.frequencies // 2
        rates = 10_000.0 ** -(torch.arange(half, device=timesteps.device) / half)
        angles = timesteps[:, None] * rates  # (N, half)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(sinusoids.to(next(self.mlp.parameters()).dtype))

    def reset_parameters(self) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                init_linear(layer)
