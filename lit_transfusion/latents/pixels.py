"""The codec for diffusion on pixels, without a latent space."""

from torch import Tensor

from lit_transfusion.latents.base import Codec


class Pixels(Codec):
    """Uses the RGB pixels as latents (paper, footnote 3). It has no weights, and is for small pictures."""

    latent_channels = 3
    downscale = 1

    def moments(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)
