"""The configuration of the Transformer: its widths, and the variants of its blocks."""

from dataclasses import dataclass
from typing import Literal

from lit_transfusion.errors import InputError


@dataclass(frozen=True)
class TransformerConfig:
    """The Transformer, in Llama's words. The defaults are the paper's.

    Checkpoints and exported models contain all fields.

    Args:
        dim: Width D.
        n_layers: Number of blocks.
        n_heads: Number of attention heads; `dim` must be a multiple of twice this.
        n_kv_heads: Number of heads of keys and values, a divisor of `n_heads`; null for `n_heads`. With fewer, several
            query heads share one (grouped-query attention), and the cache of decoding is smaller.
        hidden_dim: Width of the feed-forward layer; null means Llama's rule, 8/3 · dim rounded up to `multiple_of`.
        multiple_of: The rounding unit of Llama's rule.
        norm_eps: Number that RMSNorm adds to the mean square.
        norm_order: Where the norms are: before attention and feed-forward layer (`pre`, Llama and the paper), or after
            them, before the residual sum (`post`, Swin and Chameleon).
        qk_norm: Normalise each head's queries and keys (Chameleon, Qwen 3): keeps attention stable at large sizes.
        rope_theta: Base of the rotary position embedding; larger for longer documents.
        rope: Rotary positions of patches: their place in the sequence (`1d`, the paper), or their row and column
            (`2d`). Text has its place in the sequence in both.
        tie_embeddings: Use the embedding of the tokens as the head, too.
        dropout: Share of the outputs of attention and feed-forward layers that training sets to zero, in [0, 1).
        modality_weights: What patches have their own copy of: nothing (`none`, the paper), the feed-forward layers and
            their norms (`ffn`), or all weights of the blocks and all norms (`all`, Mixture-of-Transformers). Attention
            is over the whole sequence in all of them, and the operations per token are the same.

    Raises:
        InputError: The number of heads is not possible, or a value is outside its range.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    hidden_dim: int | None = None
    multiple_of: int = 256
    norm_eps: float = 1e-5
    norm_order: Literal["pre", "post"] = "pre"
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    rope: Literal["1d", "2d"] = "1d"
    tie_embeddings: bool = False
    dropout: float = 0.0
    modality_weights: Literal["none", "ffn", "all"] = "none"

    def __post_init__(self) -> None:
        if self.dim % (2 * self.n_heads):
            raise InputError(
                f"model.size: dim {self.dim} is not a multiple of twice the {self.n_heads} heads (n_heads), as rotary "
                f"positions require; use a multiple of {2 * self.n_heads}"
            )
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            raise InputError(
                f"model.size: n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}; use a divisor, or "
                "null for as many as n_heads"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.size: dropout {self.dropout} is invalid; use a share in [0, 1)")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def groups_modalities(self) -> bool:
        """Whether positions are grouped by modality, since patches have weights of their own."""
        return self.modality_weights != "none"

    @property
    def feed_forward_dim(self) -> int:
        """Width of the feed-forward layer."""
        return self.hidden_dim or llama_hidden_dim(self.dim, self.multiple_of)


def llama_hidden_dim(dim: int, multiple_of: int) -> int:
    """Return 8/3 · dim, rounded up: SwiGLU's three matrices then have as many parameters as the usual two."""
    return -(-(8 * dim // 3) // multiple_of) * multiple_of


SIZES: dict[str, TransformerConfig] = {
    "nano": TransformerConfig(dim=128, n_layers=4, n_heads=4, multiple_of=32),  # 0.8M, for two CPU cores
    "tiny": TransformerConfig(dim=256, n_layers=6, n_heads=8, multiple_of=64),  # 5M
    "0.16B": TransformerConfig(dim=768, n_layers=16, n_heads=12),  # this and the larger ones: the paper's Table 2
    "0.37B": TransformerConfig(dim=1024, n_layers=24, n_heads=16),
    "0.76B": TransformerConfig(dim=1536, n_layers=24, n_heads=24),
    "1.4B": TransformerConfig(dim=2048, n_layers=24, n_heads=16),
    "7B": TransformerConfig(dim=4096, n_layers=32, n_heads=32),
}
