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

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")  # what a path to a file ends in


class VAE(Codec):
    """A `diffusers` AutoencoderKL (of Stable Diffusion and the like) or AutoencoderTiny (TAESD), loaded and frozen.

    Which of the two it is, and how its latents z are brought to a scale of about one, stands in its `config.json`:
    latents = (z - shift_factor) · scaling_factor. Moments are the mean and the log-variance of the posterior of z; of
    AutoencoderTiny, which has none, z itself.

    Args:
        path: Folder that holds the autoencoder, or owner/name on the Hugging Face hub.
        subfolder: Where to look inside it; `vae` if `path` is a whole pipeline.
        sample_posterior: Encode to a sample of the posterior; else to its mean. AutoencoderTiny has no posterior.
        revision: Branch, tag or commit on the hub; its main branch if not given.
    """

    def __init__(
        self, path: str, subfolder: str | None = None, sample_posterior: bool = True, revision: str | None = None
    ) -> None:
        super().__init__()
        if not os.path.isdir(path):
            check_may_be_on_hub(path, subfolder, revision)
        self.path = os.path.abspath(path) if os.path.isdir(path) else path  # found again from another directory
        self.subfolder = subfolder
        self.sample_posterior = sample_posterior
        self.revision = revision

        from diffusers import AutoencoderKL, AutoencoderTiny  # here, since it takes seconds and Pixels needs none of it

        place = f"VAE path {path!r}" + (f", subfolder {subfolder!r}" if subfolder else "")
        try:
            config = AutoencoderKL.load_config(path, subfolder=subfolder, revision=revision)
        except (OSError, ValueError) as error:
            if os.path.isdir(path):
                fix = "holds no readable config.json"
                fix += "" if subfolder else "; if it is a whole pipeline, set subfolder: vae"
            else:
                fix = "is no folder here, and the Hugging Face hub did not hand out a model of that name"
            raise InputError(f"{place} {fix}") from error

        class_name = config.get("_class_name")
        classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
        if class_name not in classes:
            raise InputError(f"{place} holds a model of class {class_name}, not one of {', '.join(classes)}")
        try:
            self.autoencoder, loading = classes[class_name].from_pretrained(
                path, subfolder=subfolder, revision=revision, low_cpu_mem_usage=False, output_loading_info=True
            )
        except Exception as error:  # a missing file, one cut short, weights that do not fit the config
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{place}: the weights of its {class_name} do not load ({reason})") from error
        if loading["missing_keys"]:  # diffusers would go on with random numbers in their place
            raise InputError(f"{place}: its file of weights lacks {len(loading['missing_keys'])} of a {class_name}'s")

        self.has_posterior = class_name == "AutoencoderKL"
        self.latent_channels = self.autoencoder.config.latent_channels
        self.downscale = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        self.scaling_factor = self.autoencoder.config.scaling_factor
        self.shift_factor = self.autoencoder.config.shift_factor or 0.0  # null in the older ones
        self.requires_grad_(False).eval()

    def save(self, folder: Path) -> dict[str, Any]:
        """Written out even if it came from the hub: a name there may vanish, or hold other weights by then."""
        if os.path.isabs(self.path):  # diffusers would write this machine's path into its config.json
            self.autoencoder.register_to_config(_name_or_path=os.path.basename(self.path))
        self.autoencoder.save_pretrained(folder / "codec")
        return {"path": "./codec", "subfolder": None, "revision": None}

    def identity(self) -> str:
        """By its weights, wherever they lie. How z is drawn from its posterior makes no other codec."""
        return identity_of(self, (self.has_posterior, self.scaling_factor, self.shift_factor))

    def moments_shape(self, image_size: int) -> tuple[int, int, int]:
        channels, rows, columns = self.latent_shape(image_size)
        return (2 if self.has_posterior else 1) * channels, rows, columns

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        if len(images) == 0:  # which the attention of AutoencoderKL cannot take
            rows, columns = (side // self.downscale for side in images.shape[2:])
            return images.new_empty(0, self.moments_shape(self.downscale)[0], rows, columns)
        encoded = self.autoencoder.encode(images.to(self.autoencoder.dtype))
        kept = encoded.latent_dist.parameters if self.has_posterior else encoded.latents
        return kept.to(images.dtype)

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
    """Refuse a mistyped path at once: to ask the hub for it takes half a minute where there is no network."""
    owner, _, name = path.partition("/")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) or name.endswith(WEIGHTS):
        found = "is a file, and no folder" if os.path.isfile(path) else "is no folder here"
        raise InputError(f"VAE path {path!r} {found}; give the folder with its config.json, or owner/name on the hub")
    # What was fetched from the hub before is a name on it, such as in a checkpoint.
    fetched = try_to_load_from_cache(path, f"{subfolder}/config.json" if subfolder else "config.json")
    if os.path.isdir(owner) and revision is None and fetched is None:
        raise InputError(
            f"VAE path {path!r} is not there, though the folder {owner} is; mend the path, or set revision: main if it "
            "is a name on the hub"
        )
