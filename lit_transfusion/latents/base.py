"""The base class of codecs, the only part that depends on the latent space."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.serialization import describe


class Raw(NamedTuple):
    """Pictures that a codec has not encoded."""

    tensor: Tensor  # (3, height, width) in [-1, 1]; several of them (N, 3, height, width)


class Moments(NamedTuple):
    """Pictures that a codec has encoded, but whose latents it has not drawn (see `Codec.moments`)."""

    tensor: Tensor  # (K, h, w); several of them (N, K, h, w)


class Codec(nn.Module):
    """Converts images to latents, which the diffusion uses, and back (paper, 2.3 and 4.1).

    Encoding has two steps. `moments` is slow and deterministic, so that `prepare` can save its result; `sample` is fast
    and may draw random numbers. Your own codec may implement only `encode`; its latents then cannot be prepared.

    A codec is frozen: it is never trained, and `train()` keeps it in eval mode. Constructor arguments must be saved as
    attributes of the same names, so that a checkpoint can describe how to build the codec. Latents should have a scale
    of about one, like the noise.
    """

    latent_channels: int  # C of the latents
    downscale: int  # pixels per latent pixel along one side
    num_codes: int | None = None  # size of the codebook of a codec whose latents are codes (N, 1, H, W) int64

    def latents(self, images: Tensor | Raw | Moments, generator: torch.Generator | None = None) -> Tensor:
        """Convert images of any kind to latents (N, C, H, W). A plain tensor already contains latents."""
        match images:
            case Raw(pixels):
                return self.encode(pixels, generator)
            case Moments(moments):
                return self.sample(moments.to(torch.promote_types(moments.dtype, torch.float32)), generator)
        return images

    def shape_of_latents(self, images: Tensor | Raw | Moments) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of the latents of one of these images."""
        if isinstance(images, Tensor):
            channels, height, width = images.shape[-3:]
            return channels, height, width
        height, width = images.tensor.shape[-2:]
        factor = self.downscale if isinstance(images, Raw) else 1
        return self.latent_channels, height // factor, width // factor

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode (N, 3, height, width) in [-1, 1] to (N, C, height / downscale, width / downscale).

        `generator` is used by codecs that draw random numbers.
        """
        return self.sample(self.moments(images), generator)

    def moments(self, images: Tensor) -> Tensor:
        """Return what `sample` needs for images (N, 3, height, width) in [-1, 1]: (N, K, h, w), in their dtype.

        An example is the mean and the log-variance of each latent.
        """
        raise NotImplementedError

    def sample(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents (N, C, height / downscale, width / downscale) from the result of `moments`, with `generator`.

        By default the moments are the latents, and nothing is drawn.
        """
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """Decode (N, C, H, W) to (N, 3, H · downscale, W · downscale), clamped to [-1, 1]."""
        raise NotImplementedError

    def latent_shape(self, height: int, width: int | None = None) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of the latents of an image of this many pixels; a square one without `width`.

        Raises:
            InputError: A side is not a positive multiple of `downscale`.
        """
        sides = height, height if width is None else width
        for side in sides:
            if side < 1 or side % self.downscale:
                raise InputError(
                    f"image_size {side} is not a multiple of {self.downscale}, the downscale factor of "
                    f"{type(self).__name__}; use a positive multiple"
                )
        return self.latent_channels, sides[0] // self.downscale, sides[1] // self.downscale

    def moments_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return the shape (K, h, w) of the moments of a square image with sides of `image_size` pixels."""
        return self.latent_shape(image_size)

    def identity(self) -> str:
        """Return a name that two codecs share only if they encode an image to the same latents.

        By default it depends on the constructor's arguments and the weights. Override it if an argument is only the
        location of the weights: the same weights at another location are the same codec.
        """
        return identity_of(self, describe(self)["init_args"])

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights, if there are any, to `folder`/codec, and return the arguments that load them from there.

        The returned arguments replace those of the same name when the codec is built from `folder`. A string that
        begins with "./" is a path relative to `folder`, which may have been moved.
        """
        return {}

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def identity_of(codec: Codec, traits: object) -> str:
    """Return the class name of a codec with a short hash of its weights and `traits`.

    Args:
        codec: The codec.
        traits: Everything else that its latents depend on.
    """
    digest = hashlib.sha256(repr(traits).encode())
    hash_weights(codec, digest)
    return f"{type(codec).__name__}-{digest.hexdigest()[:12]}"


def hash_weights(module: nn.Module, digest: "hashlib._Hash") -> None:
    """Update a digest of hashlib with names and weights. The bytes are the same on all devices."""
    for name, weight in module.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.reshape(-1).view(torch.uint8).cpu().numpy())  # as bytes, for any dtype
