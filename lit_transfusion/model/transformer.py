"""The Transformer: a stack of Llama blocks. It does not depend on images."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.model.attention import Attend
from lit_transfusion.model.block_runner import RunBlock, as_it_is
from lit_transfusion.model.kv_cache import KVCache

Rope = tuple[Tensor, Tensor]  # cosines and sines, (B, 1, L, head_dim / 2)


@dataclass(frozen=True)
class TransformerSize:
    """The sizes of a Transformer, in Llama's words.

    Args:
        dim: Width D.
        n_layers: Number of blocks.
        n_heads: Number of attention heads; `dim` must be a multiple of twice this.
        hidden_dim: Width of the feed-forward layer; null means Llama's rule, 8/3 · dim rounded up to `multiple_of`.
        multiple_of: The rounding unit of Llama's rule.
    """

    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int | None = None
    multiple_of: int = 256


SIZES: dict[str, TransformerSize] = {
    "nano": TransformerSize(dim=128, n_layers=4, n_heads=4, multiple_of=32),  # 0.8M, for two CPU cores
    "tiny": TransformerSize(dim=256, n_layers=6, n_heads=8, multiple_of=64),  # 5M
    "0.16B": TransformerSize(dim=768, n_layers=16, n_heads=12),  # this and the larger ones: the paper's Table 2
    "0.37B": TransformerSize(dim=1024, n_layers=24, n_heads=16),
    "0.76B": TransformerSize(dim=1536, n_layers=24, n_heads=24),
    "1.4B": TransformerSize(dim=2048, n_layers=24, n_heads=16),
    "7B": TransformerSize(dim=4096, n_layers=32, n_heads=32),
}


@final
class Transformer(nn.Module):
    """Llama blocks: RMSNorm before each part, rotary positions, SwiGLU, no biases (paper, 4.1).

    Args:
        size: Widths and depths; `SIZES` has those of the paper.
        rope_theta: Base of the rotary position embedding.
        norm_eps: Number that RMSNorm adds to the mean square.
    """

    def __init__(self, size: TransformerSize, rope_theta: float = 10_000.0, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.size = size
        self.rope_theta = rope_theta
        self.blocks = nn.ModuleList([Block(size, norm_eps) for _ in range(size.n_layers)])
        self.norm = nn.RMSNorm(size.dim, eps=norm_eps)
        self.run_block: RunBlock = as_it_is  # training may set another runner (see `block_runner.py`)
        self.run_cached_block: RunBlock = as_it_is  # decoding with a cache may set another runner

    def forward(self, x: Tensor, positions: Tensor, attend: Attend, cache: KVCache | None = None) -> Tensor:
        """(B, L, D) embeddings at (B, L) positions → (B, L, D) normalised hidden states.

        With a cache, `x` contains the new positions only, and `attend` also sees the cached keys.
        """
        rope = rotary_angles(positions, self.size.dim // self.size.n_heads, self.rope_theta)
        for layer, block in enumerate(self.blocks):
            if cache is None:
                x = self.run_block(block, x, rope, attend)
            else:
                x = self.run_cached_block(block, x, rope, cache.layer(layer, attend))
        return self.norm(x)

    def reset_parameters(self) -> None:
        """Initialise the weights as truncated normals of standard deviation 1/√fan_in.

        Every layer then keeps the scale of its input. The layers that write into the residual stream are divided by
        √(2 · n_layers), so that its variance does not grow with depth (GPT-2).
        """
        for module in self.modules():
            if isinstance(module, Block):
                for linear in (module.attention.qkv, module.feed_forward.gate_up):
                    init_linear(linear)
                for linear in (module.attention.out, module.feed_forward.down):
                    init_linear(linear, scale=(2 * len(self.blocks)) ** -0.5)
            elif isinstance(module, nn.RMSNorm):
                module.reset_parameters()


class Block(nn.Module):
    """Attention and feed-forward layer, each with a norm before it and a residual connection."""

    def __init__(self, size: TransformerSize, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(size.dim, eps=norm_eps)
        self.attention = Attention(size.dim, size.n_heads)
        self.feed_forward_norm = nn.RMSNorm(size.dim, eps=norm_eps)
        self.feed_forward = FeedForward(size.dim, size.hidden_dim or llama_hidden_dim(size.dim, size.multiple_of))

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, attend)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        if dim % (2 * n_heads):
            raise InputError(
                f"model.size: dim {dim} is not a multiple of twice the {n_heads} heads (n_heads), as required by "
                f"rotary positions; use a multiple of {2 * n_heads}"
            )
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)  # one product instead of three
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3 * self.n_heads, -1)).transpose(1, 2)  # (B, 3 · heads, L, head_dim)
        qk, v = qkv.split([2 * self.n_heads, self.n_heads], dim=1)
        q, k = rotate(qk, rope).chunk(2, dim=1)  # (B, heads, L, head_dim) each
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))  # (B, L, D)


class FeedForward(nn.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)  # one product instead of two
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def llama_hidden_dim(dim: int, multiple_of: int) -> int:
    """Return 8/3 · dim, rounded up: SwiGLU's three matrices then have as many parameters as the usual two."""
    return -(-(8 * dim // 3) // multiple_of) * multiple_of


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> Rope:
    """Map (B, L) positions to cosines and sines, (B, 1, L, head_dim / 2) in float32."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = positions[:, None, :, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the pairs (x_i, x_{i + head_dim/2}) of (B, heads, L, head_dim) by their angles."""
    cos, sin = rope
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def init_linear(linear: nn.Linear, scale: float = 1.0) -> None:
    std = scale * linear.in_features**-0.5
    nn.init.trunc_normal_(linear.weight, std=std, a=-3 * std, b=3 * std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
