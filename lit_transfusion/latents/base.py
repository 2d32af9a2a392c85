"""What a codec has to offer: the only part that knows what the latent space is."""

import hashlib
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.serialization import describe


class Codec(nn.Module):
    """Turns images into latents, on which the diffusion works, and back (paper, 2.3 and 4.1).

    Encoding has two steps: `moments`, which is slow and always the same for an image, so that `prepare` can keep it,
    and `sample`, which is fast and draws what there is to draw. A codec of your own may have `encode` alone in their
    place; its latents cannot be prepared then.

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
        return self.sample(self.moments(images), generator)

    def moments(self, images: Tensor) -> Tensor:
        """All that encoding needs to know of images (N, 3, height, width) in [-1, 1]: (N, K, h, w), in their dtype.

        Such as the mean and the log-variance of each latent.
        """
        raise NotImplementedError

    def sample(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What `moments` gave → latents (N, C, height / downscale, width / downscale), drawn with `generator`.

        By default moments are the latents, and nothing is drawn.
        """
        return moments

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

    def moments_shape(self, image_size: int) -> tuple[int, int, int]:
        """(K, h, w) of the moments of a square image with sides of `image_size` pixels."""
        return self.latent_shape(image_size)

    def identity(self) -> str:
        """A name that another codec has only if it makes the same latents of an image.

        By default it is made of the constructor's arguments and the weights. Override it where an argument only says
        where weights lie: the same weights at another place are the same codec.
        """
        return identity_of(self, describe(self)["init_args"])

    def save(self, folder: Path) -> dict[str, Any]:
        """Write weights of its own, if it has any, to `folder`/codec, and return the arguments that find them there.

        They are put in the place of those of the same name when the codec is built from `folder`, wherever that is by
        then: a text among them that begins with "./" is a path in it.
        """
        return {}

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def identity_of(codec: Codec, traits: object) -> str:
    """The codec's class and a short hash of its weights and of what else its latents depend on."""
    digest = hashlib.sha256(repr(traits).encode())
    hash_weights(codec, digest)
    return f"{type(codec).__name__}-{digest.hexdigest()[:12]}"


def hash_weights(module: nn.Module, digest: "hashlib._Hash") -> None:
    """Feed names and weights to a digest of hashlib: the same bytes on all devices."""
    for name, weight in module.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.reshape(-1).view(torch.uint8).cpu().numpy())  # its bytes, of any dtype
