"""The smallest codec with a codebook, without weights."""

import torch
from torch import Tensor

from lit_transfusion.latents import Codec


class Signs(Codec):
    """Eight codes: the signs of red, green and blue in a square of 2 × 2 pixels."""

    latent_channels = 1
    downscale = 2
    num_codes = 8

    def moments(self, images: Tensor) -> Tensor:
        means = images.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))  # (N, 3, h, w)
        return ((means > 0) * torch.tensor([4.0, 2.0, 1.0], device=images.device)[:, None, None]).sum(1, keepdim=True)

    def sample(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return moments.long()

    def decode(self, latents: Tensor) -> Tensor:
        signs = torch.cat([latents // 4, latents // 2 % 2, latents % 2], 1) * 2.0 - 1
        return signs.repeat_interleave(2, 2).repeat_interleave(2, 3)
