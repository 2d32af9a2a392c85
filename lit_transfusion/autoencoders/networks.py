"""The architecture that all autoencoders share, as arguments of `diffusers`, and the check of saved weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_transfusion.errors import InputError, check_at_least


def architecture(
    image_size: int,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    latent_channels: int,
    norm_num_groups: int,
    attention: bool,
) -> dict[str, Any]:
    """Return the arguments that `AutoencoderKL` and `VQModel` share. For their meaning, see `LitAutoencoder`.

    Raises:
        InputError: A value is invalid, or the picture cannot be halved as often as this needs.
    """
    check_at_least("model.layers_per_block", layers_per_block)
    check_at_least("model.latent_channels", latent_channels)
    check_at_least("model.norm_num_groups", norm_num_groups)
    if not block_out_channels:
        raise InputError("model.block_out_channels is empty; use one number for each level, such as [32, 64, 64]")
    for channels in block_out_channels:
        if channels < 1 or channels % norm_num_groups:
            raise InputError(
                f"model.block_out_channels {list(block_out_channels)}: {channels} is not a multiple of "
                f"model.norm_num_groups {norm_num_groups}; change one of them"
            )
    downscale = 2 ** (len(block_out_channels) - 1)
    if image_size % downscale:
        near = max(image_size // downscale, 1) * downscale
        raise InputError(
            f"data.image_size {image_size} is not a multiple of {downscale}, the downscale factor of "
            f"{len(block_out_channels)} levels (model.block_out_channels); use {near} or {near + downscale}"
        )
    return {
        "sample_size": image_size,
        "down_block_types": ("DownEncoderBlock2D",) * len(block_out_channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(block_out_channels),
        "block_out_channels": tuple(block_out_channels),
        "layers_per_block": layers_per_block,
        "latent_channels": latent_channels,
        "norm_num_groups": norm_num_groups,
        "mid_block_add_attention": attention,
    }


def check_shapes(saved: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise InputError if saved weights are those of another architecture."""
    for name in saved.keys() | own.keys():
        shapes = [tuple(weights[name].shape) if name in weights else "none" for weights in (saved, own)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"the checkpoint is of another autoencoder: {name} has the shape {shapes[0]} there and {shapes[1]} "
                "here; resume with the config.yaml of its run"
            )
