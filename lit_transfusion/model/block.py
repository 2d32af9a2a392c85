"""A Llama block: attention and feed-forward layer, each with a norm and a residual connection.

A block has three parts. `project` and `finish` treat each position alone; `attend_heads` between them has no weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.model.attention import Attend
from lit_transfusion.model.config import TransformerConfig
from lit_transfusion.model.rotary import Rope, rotate


class Block(nn.Module):
    """RMSNorm before each layer (or after it), rotary positions, SwiGLU, no biases (paper, 4.1).

    Args:
        config: Widths and variants.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_order == "pre"
        self.dropout = config.dropout
        self.n_heads = config.n_heads
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.feed_forward_dim)

    def forward(self, x: Tensor, attend: Attend, rope: Rope) -> Tensor:
        """(B, L, D) hidden states → the same shape."""
        return self.finish(x, attend_heads(self.project(x), attend, rope, self.n_heads))

    def project(self, x: Tensor) -> Tensor:
        """(…, D) → queries, keys and values (…, heads + 2 · kv_heads, head_dim)."""
        return self.attention.project(self.attention_norm(x) if self.pre_norm else x)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """(…, D) hidden states and the result of attention → (…, D)."""
        if self.pre_norm:
            x = x + self._drop(self.attention.out(attended))
            return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))
        x = x + self._drop(self.attention_norm(self.attention.out(attended)))
        return x + self._drop(self.feed_forward_norm(self.feed_forward(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Attention(nn.Module):
    """The weights of multi-head self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.n_heads, config.kv_heads, config.kv_heads  # of queries, keys and values
        self.qkv = nn.Linear(config.dim, sum(self.heads) * config.head_dim, bias=False)  # one product instead of three
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def project(self, x: Tensor) -> Tensor:
        """(…, D) → queries, keys and values (…, heads + 2 · kv_heads, head_dim)."""
        qkv = self.qkv(x).unflatten(-1, (sum(self.heads), -1))
        if not self.qk_norm:
            return qkv
        q, k, v = qkv.split(self.heads, dim=-2)
        return torch.cat([self.q_norm(q), self.k_norm(k), v], dim=-2)


def attend_heads(qkv: Tensor, attend: Attend, rope: Rope, n_heads: int) -> Tensor:
    """Rotate queries and keys, and attend: (B, L, heads + 2 · kv_heads, head_dim) → (B, L, D)."""
    qkv = qkv.transpose(1, 2)
    kv_heads = (qkv.shape[1] - n_heads) // 2
    qk, v = qkv.split([n_heads + kv_heads, kv_heads], dim=1)
    q, k = rotate(qk, rope).split([n_heads, kv_heads], dim=1)  # (B, heads, L, head_dim)
    return attend(q, k, v).transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)  # one product instead of two
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
