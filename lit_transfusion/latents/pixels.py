"""No latent space at all: diffusion on the pixels themselves."""

from torch import Tensor

from lit_transfusion.latents.base import Codec


class Pixels(Codec):
    """Latents are the RGB pixels (paper, footnote 3). Needs no weights, and suits small pictures."""

    latent_channels = 3
    downscale = 1

    def moments(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)
