"""What the losses of a batch compare: noise is added to the images, and the net runs once."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.types import PackedBatch
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec
from lit_transfusion.model import Transfusion


class Compared(NamedTuple):
    """Outputs of the net and their targets."""

    logits: Tensor  # (T, V) at the positions with a target
    targets: Tensor  # (T,) token ids
    image_prediction: Tensor  # (M, C, H, W), of the learned images
    image_target: Tensor  # (M, C, H, W)
    image_weights: Tensor  # (M,) of their squared errors


def run_with_noise(
    net: Transfusion, noise: NoiseProcess, latents: Tensor, batch: PackedBatch, generator: torch.Generator
) -> tuple[Compared, Tensor]:
    """Add noise to each image at its own timestep, and run the net.

    Args:
        net: The net.
        noise: The noise process.
        latents: (N, C, H, W) of the images of the batch, see `sample_latents`.
        batch: A batch on the net's device.
        generator: Generator of timesteps and noise.

    Returns:
        What the losses compare, and the timesteps (M,) of the learned images.
    """
    timesteps = noise.draw_timesteps(batch.max_timesteps, generator)  # (N,)
    added = torch.randn(latents.shape, generator=generator, device=latents.device)
    output = net(
        batch.tokens,
        batch.positions,
        batch.document_ids,
        batch.image_ids,
        noise.add_noise(latents, added, timesteps),
        timesteps,
        logit_positions=batch.target_positions,
        private=batch.private,
    )
    learned_timesteps = timesteps.index_select(0, batch.learned_images)
    compared = Compared(
        output.logits,
        batch.labels.flatten().index_select(0, batch.target_positions),
        output.image_prediction.index_select(0, batch.learned_images),
        noise.target(latents, added, timesteps).index_select(0, batch.learned_images),
        noise.weight(learned_timesteps),
    )
    return compared, learned_timesteps


def sample_latents(images: Tensor, codec: Codec, image_size: int, generator: torch.Generator) -> Tensor:
    """Map the images of a batch, pixels (N, 3, S, S) or moments (N, K, h, w) of the codec, to (N, C, H, W)."""
    if images.shape[1:] == (3, image_size, image_size):  # moments that `prepare` saves never have this shape
        return codec.encode(images, generator)
    return codec.sample(images.to(torch.promote_types(images.dtype, torch.float32)), generator)


def check_clipping(noise: NoiseProcess, codec: Codec) -> None:
    """Raise InputError if sampling would clip latents to the range of pixels."""
    if getattr(noise, "clip_sample", False) and codec.downscale > 1:
        raise InputError(
            "model.noise.clip_sample true is for pixels only: it would clip latents to [-1, 1]; "
            "set model.noise.init_args.clip_sample to false"
        )
