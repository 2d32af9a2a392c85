"""What a codec has to offer: the only part that knows what the latent space is."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_transfusion.errors import InputError


class Codec(nn.Module):
    """Turns images into latents, on which the diffusion works, and back (paper, 2.3 and 4.1).

    A codec is frozen: it is never trained and stays in eval mode whatever `train()` is called on it or around it.
    Its constructor arguments stay its attributes under the same names, so that a checkpoint can say how to build it
    again. Latents should have a scale of about one, as the noise has.
    """

    latent_channels: int  # C of the latents
    downscale: int  # pixels per latent pixel along one side

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, 3, height, width) in [-1, 1] → (N, C, height / downscale, width / downscale).

        `generator` is the source of randomness, for codecs that have any.
        """
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 3, H · downscale, W · downscale), clamped to [-1, 1]."""
        raise NotImplementedError

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a square image with sides of `image_size` pixels."""
        if image_size < 1 or image_size % self.downscale:
            raise InputError(
                f"image_size {image_size} is not a multiple of {self.downscale}, "
                f"by which {type(self).__name__} shrinks an image"
            )
        return self.latent_channels, image_size // self.downscale, image_size // self.downscale

    def save(self, folder: Path) -> dict[str, Any]:
        """Write weights of its own, if it has any, to `folder`/codec, and return the arguments that find them there.

        They are put in the place of those of the same name when the codec is built from `folder`, wherever that is by
        then: a text among them that begins with "./" is a path in it.
        """
        return {}

    def train(self, mode: bool = True) -> "Codec":
        return super().train(False)
