"""A pretrained autoencoder from `diffusers` as the latent space."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from lit_transfusion.errors import InputError
from lit_transfusion.latents.base import Codec, identity_of

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")  # endings of a path to a file


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
        if not os.path.isdir(path):
            check_may_be_on_hub(path, subfolder, revision)
        self.path = os.path.abspath(path) if os.path.isdir(path) else path  # also valid in another working directory
        self.subfolder = subfolder
        self.sample_posterior = sample_posterior
        self.revision = revision

        # Imported here: it takes seconds, and Pixels does not use it.
        from diffusers import AutoencoderKL, AutoencoderTiny

        place = f"VAE path {path!r}" + (f", subfolder {subfolder!r}" if subfolder else "")
        try:
            config = AutoencoderKL.load_config(path, subfolder=subfolder, revision=revision)
        except (OSError, ValueError) as error:
            if os.path.isdir(path):
                fix = "contains no readable config.json; check the folder"
                fix += "" if subfolder else ", or if it is a whole pipeline, set subfolder: vae"
            else:
                fix = (
                    "is not a folder on this machine, and the Hugging Face hub provided no such model; check the path "
                    "and the network"
                )
            raise InputError(f"{place} {fix}") from error

        class_name = config.get("_class_name")
        classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
        if class_name not in classes:
            raise InputError(
                f"{place} contains a model of class {class_name}, not one of {', '.join(classes)}; choose such a model"
            )
        try:
            self.autoencoder, loading = classes[class_name].from_pretrained(
                path, subfolder=subfolder, revision=revision, low_cpu_mem_usage=False, output_loading_info=True
            )
        except Exception as error:  # a missing or truncated file, or weights that do not fit the config
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{place}: the weights of the {class_name} cannot be loaded ({reason}); save or download them again"
            ) from error
        if missing := loading["missing_keys"]:  # diffusers would use random numbers for them
            raise InputError(
                f"{place}: the file of weights lacks {len(missing)} weights of the {class_name}, the first is "
                f"{missing[0]}; save or download it again"
            )

        self.has_posterior = class_name == "AutoencoderKL"
        self.latent_channels = self.autoencoder.config.latent_channels
        self.downscale = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        self.scaling_factor = self.autoencoder.config.scaling_factor
        self.shift_factor = self.autoencoder.config.shift_factor or 0.0  # null in older models
        self.requires_grad_(False).eval()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights, also if they came from the hub, where a model may be removed or changed later."""
        if os.path.isabs(self.path):  # diffusers would write this machine's path into its config.json
            self.autoencoder.register_to_config(_name_or_path=os.path.basename(self.path))
        self.autoencoder.save_pretrained(folder / "codec")
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


def check_may_be_on_hub(path: str, subfolder: str | None, revision: str | None) -> None:
    """Check that a path may be a name on the hub. Without a network, a request to the hub takes half a minute.

    Raises:
        InputError: It is the path of a file, or of a folder that does not exist.
    """
    owner, _, name = path.partition("/")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) or name.endswith(WEIGHTS):
        problem = "is a file, not a folder" if os.path.isfile(path) else "is not a folder on this machine"
        raise InputError(f"VAE path {path!r} {problem}; use the folder with its config.json, or owner/name on the hub")
    # A model in the cache was downloaded before, so the path is a name on the hub, for example one in a checkpoint.
    fetched = try_to_load_from_cache(path, f"{subfolder}/config.json" if subfolder else "config.json")
    if os.path.isdir(owner) and revision is None and fetched is None:
        raise InputError(
            f"VAE path {path!r} does not exist, but the folder {owner} does; fix the path, or set revision: main if it "
            "is a name on the hub"
        )
