"""The Transformer: a stack of Llama blocks. Of images it only knows which positions are patches."""

from typing import final

import torch
from torch import Tensor, nn

from lit_transfusion.model.attention import Attend
from lit_transfusion.model.block import Block
from lit_transfusion.model.block_runner import RunBlock, as_it_is
from lit_transfusion.model.config import TransformerConfig
from lit_transfusion.model.kv_cache import KVCache
from lit_transfusion.model.modality_block import Grouping, ModalityBlock
from lit_transfusion.model.rotary import rotary_angles


@final
class Transformer(nn.Module):
    """Llama blocks and a last norm (paper, 4.1).

    Args:
        config: Widths, depth and variants; `SIZES` has those of the paper.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        kind = ModalityBlock if config.groups_modalities else Block
        self.blocks = nn.ModuleList([kind(config) for _ in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        if config.modality_weights == "all":
            self.patch_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.run_block: RunBlock = as_it_is  # training may set another runner (see `block_runner.py`)
        self.run_cached_block: RunBlock = as_it_is  # decoding with a cache may set another runner

    def forward(
        self,
        x: Tensor,
        coordinates: Tensor,
        is_patch: Tensor,
        attend: Attend,
        cache: KVCache | None = None,
        kept: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Map (B, L, D) embeddings to (B, L, D) normalised hidden states.

        Args:
            x: (B, L, D) embeddings; with a cache, those of the new positions only.
            coordinates: (B, L, axes) for the rotary position embedding.
            is_patch: (B, L) bool, True at patches.
            attend: Attention over the new positions. With a cache, it also sees the cached keys.
            cache: Keys and values of the prefix.
            kept: Receives the hidden states (B, L, D) after the blocks whose numbers, from 1, are its keys.
        """
        rope = rotary_angles(coordinates, self.config.head_dim, self.config.rope_theta)
        inputs: tuple[object, ...] = (rope,)
        if self.config.groups_modalities:
            grouping = Grouping.by_modality(is_patch)
            x, inputs = grouping.group(x), (rope, grouping)
        for layer, block in enumerate(self.blocks):
            if cache is None:
                x = self.run_block(block, x, attend, *inputs)
            else:
                x = self.run_cached_block(block, x, cache.layer(layer, attend), *inputs)
            if kept is not None and layer + 1 in kept:
                kept[layer + 1] = grouping.ungroup(x) if self.config.groups_modalities else x
        if self.config.groups_modalities:
            x = grouping.ungroup(x)
        if self.config.modality_weights == "all":
            return torch.where(is_patch[..., None], self.patch_norm(x), self.norm(x))
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


def init_linear(linear: nn.Linear, scale: float = 1.0) -> None:
    std = scale * linear.in_features**-0.5
    nn.init.trunc_normal_(linear.weight, std=std, a=-3 * std, b=3 * std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
