"""The U-Net patcher: the two halves of a small U-Net, with the Transformer between them in place of a middle block."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.model.patchers.base import Patcher

# Feature maps are (N, F, H, W), where F is the number of features of their level. They are stored as channels_last: the
# features of a pixel are then adjacent, and the permutes to (N, H, W, F) for norm and attention copy nothing. The
# weights stay contiguous, because FSDP2 only shards contiguous ones.


class UNetPatcher(Patcher):
    """Maps images to patch vectors and back by the two halves of a U-Net (paper, 3.2; "U-Net" in its Tables 5–9).

        h_in = UNet-Down(x_t, t)         ε = UNet-Up(h_out, t, h_in)         (LMFusion, arXiv 2412.15188, Eq. 6 and 14)

    A patch of 1, 2, 4 or 8 pixels takes 0, 1, 2 or 3 halvings of the resolution, so 1, 2, 3 or 4 levels. The features
    double with each halving; the last level always has `channels`. Each level has a quarter of the next one's
    parameters and the same cost of convolutions, so patch sizes 2, 4 and 8 have almost the same number of parameters.

    The paper reports 0.27B parameters at every size of the Transformer, without the layout. With `latent_channels: 8,
    channels: 1024, num_res_blocks: 4, head_dim: 64` this class has 0.263B (dim 768) to 0.272B (dim 4096) at patch 2,
    and 0.281B and 0.285B (dim 1536) at patch 4 and 8. The defaults are for the CPU.

    From the paper: blocks of Nichol & Dhariwal (2021), with LayerNorm for AdaLayerNorm (fn 7) and attention in them.
    From LMFusion ("same as Transfusion"): two blocks (our levels) at patch 2, t in both halves, the long skip of h_in.
    Our choice: h_in is the feature map before the projection to `dim`; the finer levels have skips, too, as in any
    U-Net; t is added in the blocks, without scale or shift.

    Args:
        latent_channels: Channels C of the images (set by the data module's codec).
        dim: Width D of the Transformer (set by the model's size).
        patch_size: Side of a patch in latent pixels, 1, 2, 4 or 8; height and width must be multiples of it.
        channels: Features of the coarsest level, which is next to the Transformer; each finer level has half as many.
        num_res_blocks: Residual blocks per level, in each half.
        head_dim: Features of an attention head; if a level is not a multiple of it, the greatest common
            divisor is used.
        attention_levels: Number of levels with attention, from the coarsest. The cost at a level grows with the square
            of its number of pixels, so on raw pixels 1 is several times cheaper than all.
        positions: Number of rows and columns of patches that have a learned position (see `learn_positions`), added to
            the vectors that enter the Transformer; 0 for none, as in the paper.
    """

    def __init__(
        self,
        latent_channels: int = 3,
        dim: int = 128,
        patch_size: int = 2,
        channels: int = 64,
        num_res_blocks: int = 1,
        head_dim: int = 32,
        attention_levels: int = 4,
        positions: int = 0,
    ) -> None:
        super().__init__(latent_channels, dim, patch_size)
        self.channels = channels
        self.num_res_blocks = num_res_blocks
        self.head_dim = head_dim
        self.attention_levels = attention_levels
        if patch_size not in (1, 2, 4, 8):
            raise InputError(
                f"UNetPatcher: patch_size {patch_size} is not one of 1, 2, 4, 8: a U-Net halves the resolution"
            )
        if channels % patch_size:
            raise InputError(
                f"UNetPatcher: channels {channels} is not divisible by patch_size {patch_size}; use a multiple of it"
            )
        widths = [channels // patch_size * 2**level for level in range(patch_size.bit_length())]  # fine to coarse

        # t passes a narrow layer first, so that the projections in the blocks do not grow with D.
        time_dim = channels // 2
        self.time_proj = nn.Linear(dim, time_dim)

        # Down: a convolution before each level, the first at full resolution, the others with a stride of 2.
        self.down_convs = nn.ModuleList([nn.Conv2d(latent_channels, widths[0], 3, padding=1)])
        for fine, coarse in pairwise(widths):
            self.down_convs.append(nn.Conv2d(fine, coarse, 3, stride=2, padding=1))
        heads = [head_dim if len(widths) - i <= attention_levels else None for i in range(len(widths))]
        self.down_levels = nn.ModuleList(
            Level(w, w, time_dim, num_res_blocks, h) for w, h in zip(widths, heads, strict=True)
        )
        self.proj_in = nn.Linear(channels, dim)

        # Up: the reverse. The input of each level is concatenated with a skip; a convolution follows each level.
        self.proj_out = nn.Linear(dim, channels)
        self.up_levels = nn.ModuleList(
            Level(2 * w, w, time_dim, num_res_blocks, h) for w, h in zip(reversed(widths), reversed(heads), strict=True)
        )
        self.up_convs = nn.ModuleList()
        for coarse, fine in pairwise(reversed(widths)):
            self.up_convs.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(coarse, fine, 3, padding=1)))
        # Not initialised to zero: the loss would start at exactly 1 (here: about 1.1), but no layer before this one
        # would have a gradient. Zero was worse in a small run at three seeds (loss 0.071, not 0.063, after 400 steps).
        conv_out = nn.Conv2d(widths[0], latent_channels, 3, padding=1)
        self.up_convs.append(nn.Sequential(ChannelNorm(widths[0]), nn.SiLU(), conv_out))
        self.learn_positions(positions)

    def patchify(self, noisy_images: Tensor, t_emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.check(*noisy_images.shape[2:])
        time = self.time_proj(t_emb)
        features = noisy_images.contiguous(memory_format=torch.channels_last)  # (N, C, H, W)
        skips = []
        for conv, level in zip(self.down_convs, self.down_levels, strict=True):
            features = level(conv(features), time)  # (N, F, H, W) → (N, 2F, H/2, W/2)
            skips.append(features)
        patches = self.add_positions(self.proj_in(features.permute(0, 2, 3, 1)))  # (N, rows, columns, D)
        return patches.flatten(1, 2), skips  # (N, P, D), raster order; the last skip is h_in

    def unpatchify(self, hidden: Tensor, t_emb: Tensor, skips: list[Tensor], grid: tuple[int, int]) -> Tensor:
        time = self.time_proj(t_emb)
        features = self.proj_out(hidden).unflatten(1, grid).permute(0, 3, 1, 2)  # (N, F, rows, columns)
        for level, conv, skip in zip(self.up_levels, self.up_convs, reversed(skips), strict=True):
            features = torch.cat([features, skip], dim=1)  # (N, 2F, H, W)
            features = conv(level(features, time))  # (N, F/2, 2H, 2W), in the end (N, C, H, W)
        return features


class Level(nn.Module):
    """Residual blocks at one resolution. Attention follows each of them unless `head_dim` is None.

    The first block may change the number of features.
    """

    def __init__(
        self, in_features: int, features: int, time_dim: int, num_res_blocks: int, head_dim: int | None
    ) -> None:
        super().__init__()
        in_widths = [in_features] + [features] * (num_res_blocks - 1)
        self.res_blocks = nn.ModuleList(ResBlock(width, features, time_dim) for width in in_widths)
        self.attentions = nn.ModuleList(
            nn.Identity() if head_dim is None else SelfAttention(features, head_dim) for _ in in_widths
        )

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        for res_block, attention in zip(self.res_blocks, self.attentions, strict=True):
            features = attention(res_block(features, time))
        return features


class ResBlock(nn.Module):
    """Two times norm, SiLU and convolution; the timestep is added in between (Nichol & Dhariwal, 2021)."""

    def __init__(self, in_features: int, features: int, time_dim: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_features)
        self.conv1 = nn.Conv2d(in_features, features, 3, padding=1)
        self.time_proj = nn.Linear(time_dim, features)
        self.norm2 = ChannelNorm(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.shortcut = nn.Conv2d(in_features, features, 1) if in_features != features else nn.Identity()

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(features)))
        hidden = hidden + self.time_proj(F.silu(time))[:, :, None, None]  # one vector for all pixels of an image
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.shortcut(features) + hidden


class SelfAttention(nn.Module):
    """Attention of each pixel to all pixels of its image. The mask of the Transformer does not apply (paper, 3.2)."""

    def __init__(self, features: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = math.gcd(head_dim, features)
        self.norm = nn.LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, features: Tensor) -> Tensor:
        pixels = self.norm(features.permute(0, 2, 3, 1))  # (N, H, W, F)
        qkv = self.qkv(pixels.flatten(1, 2)).unflatten(2, (3, -1, self.head_dim))  # (N, H·W, 3, heads, head_dim)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))  # 3 × (N, heads, H·W, head_dim)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # (N, H·W, heads, head_dim)
        mixed = self.proj(mixed.flatten(2)).unflatten(1, pixels.shape[1:3])  # (N, H, W, F)
        return features + mixed.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the features of each pixel of (N, F, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
