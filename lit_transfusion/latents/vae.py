"""A pretrained autoencoder from `diffusers` as the latent space."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_transfusion.latents.base import Codec, identity_of
from lit_transfusion.latents.diffusers_folder import load_autoencoder, save_autoencoder


class VAE(Codec):
    """A `diffusers` AutoencoderKL (of Stable Diffusion and the like) or AutoencoderTiny (TAESD), loaded and frozen.

    Its `config.json` contains the class and the scale of the latents z: latents = (z - shift_factor) · scaling_factor.
    Moments are the mean and the log-variance of the posterior of z. AutoencoderTiny has no posterior: its moments are
    z.

    Args:
        path: Folder that contains the autoencoder, or owner/name on the Hugging Face hub.
        subfolder: Subfolder of `path`; `vae` if `path` is a whole pipeline.
        sample_posterior: Encode to a sample of the posterior, or else to its mean. AutoencoderTiny has no posterior.
        revision: Branch, tag or commit on the hub; the main branch by default.

    Raises:
        InputError: The path, its config or its weights cannot be used.
    """

    def __init__(
        self, path: str, subfolder: str | None = None, sample_posterior: bool = True, revision: str | None = None
    ) -> None:
        super().__init__()
        self.autoencoder = load_autoencoder("VAE", ("AutoencoderKL", "AutoencoderTiny"), path, subfolder, revision)
        self.path = os.path.abspath(path) if os.path.isdir(path) else path  # also valid in another working directory
        self.subfolder = subfolder
        self.sample_posterior = sample_posterior
        self.revision = revision
        self.has_posterior = type(self.autoencoder).__name__ == "AutoencoderKL"
        self.latent_channels = self.autoencoder.config.latent_channels
        self.downscale = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        self.scaling_factor = self.autoencoder.config.scaling_factor
        self.shift_factor = self.autoencoder.config.shift_factor or 0.0  # null in older models
        self.requires_grad_(False).eval()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights, also if they came from the hub, where a model may be removed or changed later."""
        save_autoencoder(self.autoencoder, self.path, folder)
        return {"path": "./codec", "subfolder": None, "revision": None}

    def identity(self) -> str:
        """Return a name that depends on the weights and the scale, not on the path or on `sample_posterior`."""
        return identity_of(self, (self.has_posterior, self.scaling_factor, self.shift_factor))

    def moments_shape(self, image_size: int) -> tuple[int, int, int]:
        channels, rows, columns = self.latent_shape(image_size)
        return (2 if self.has_posterior else 1) * channels, rows, columns

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        if len(images) == 0:  # the attention of AutoencoderKL fails on an empty batch
            rows, columns = (side // self.downscale for side in images.shape[2:])
            return images.new_empty(0, self.moments_shape(self.downscale)[0], rows, columns)
        encoded = self.autoencoder.encode(images.to(self.autoencoder.dtype))
        moments = encoded.latent_dist.parameters if self.has_posterior else encoded.latents
        return moments.to(images.dtype)

    def sample(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        z = moments
        if self.has_posterior:
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            posterior = DiagonalGaussianDistribution(moments)
            z = posterior.sample(generator) if self.sample_posterior else posterior.mode()
        return (z - self.shift_factor) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        if len(latents) == 0:
            rows, columns = (side * self.downscale for side in latents.shape[2:])
            return latents.new_empty(0, 3, rows, columns)
        z = latents / self.scaling_factor + self.shift_factor
        images = self.autoencoder.decode(z.to(self.autoencoder.dtype)).sample
        return images.to(latents.dtype).clamp(-1, 1)
