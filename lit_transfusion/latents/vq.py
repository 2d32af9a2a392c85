"""A pretrained autoencoder with a codebook from `diffusers`: images as codes."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_transfusion.latents.base import Codec, identity_of
from lit_transfusion.latents.diffusers_folder import load_autoencoder, save_autoencoder

SPLIT = 256  # moments contain a code as two digits of this base, which float16 represents exactly


class VQ(Codec):
    """A `diffusers` VQModel, loaded and frozen. It turns an image into a grid of codes, rows of its codebook.

    The latents are the codes (N, 1, H, W) int64. A net learns and draws them as tokens, which needs
    `model.noise: NextToken` (Chameleon Team, 2024).

    Args:
        path: Folder that contains the autoencoder, or owner/name on the Hugging Face hub.
        subfolder: Subfolder of `path`; `vqvae` if `path` is a whole pipeline.
        revision: Branch, tag or commit on the hub; the main branch by default.

    Raises:
        InputError: The path, its config or its weights cannot be used.
    """

    latent_channels = 1

    def __init__(self, path: str, subfolder: str | None = None, revision: str | None = None) -> None:
        super().__init__()
        self.autoencoder = load_autoencoder("VQ", ("VQModel",), path, subfolder, revision)
        self.path = os.path.abspath(path) if os.path.isdir(path) else path  # also valid in another working directory
        self.subfolder = subfolder
        self.revision = revision
        self.downscale = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        self.num_codes = self.autoencoder.config.num_vq_embeddings
        self.requires_grad_(False).eval()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights, also if they came from the hub, where a model may be removed or changed later."""
        save_autoencoder(self.autoencoder, self.path, folder)
        return {"path": "./codec", "subfolder": None, "revision": None}

    def identity(self) -> str:
        """Return a name that depends on the weights, not on the path."""
        return identity_of(self, self.num_codes)

    def moments_shape(self, image_size: int) -> tuple[int, int, int]:
        return 2, *self.latent_shape(image_size)[1:]

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        count, height, width = len(images), images.shape[2] // self.downscale, images.shape[3] // self.downscale
        if count == 0:
            return images.new_empty(0, 2, height, width)
        encoded = self.autoencoder.encode(images.to(self.autoencoder.dtype)).latents
        codes = self.autoencoder.quantize(encoded)[2][2].view(count, height, width)
        return torch.stack([codes // SPLIT, codes % SPLIT], 1).to(images.dtype)  # (N, 2, h, w)

    def sample(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        high, low = moments.long().unbind(1)
        return (high * SPLIT + low)[:, None]  # (N, 1, h, w)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        count, _, height, width = latents.shape
        if count == 0:
            return torch.empty(0, 3, height * self.downscale, width * self.downscale, device=latents.device)
        config = self.autoencoder.config
        shape = count, height, width, config.vq_embed_dim or config.latent_channels
        codes = latents.flatten()
        # aMUSEd's models look the codes up themselves.
        given = codes if config.lookup_from_codebook else self.autoencoder.quantize.get_codebook_entry(codes, shape)
        return self.autoencoder.decode(given, force_not_quantize=True, shape=shape).sample.float().clamp(-1, 1)
