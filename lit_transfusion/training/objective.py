"""What the losses of a batch are computed from: noise is added to the images, and the net runs once."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.types import PackedBatch
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec
from lit_transfusion.model import NoisyImages, Transfusion


class Compared(NamedTuple):
    """The logits with their targets, and the errors of the learned images, group by group."""

    logits: Tensor  # (T, V) at the positions with a target
    targets: Tensor  # (T,) token ids
    image_errors: Tensor  # (M,) weighted mean squared error of each learned image (paper, Equation 3)
    timesteps: Tensor  # (M,) of these images


def run_with_noise(
    net: Transfusion, noise: NoiseProcess, codec: Codec, batch: PackedBatch, generator: torch.Generator
) -> Compared:
    """Add noise to each image at its own timestep, and run the net.

    The error of one image is the mean over its channels and pixels, so that it does not depend on their number.

    Args:
        net: The net.
        noise: The noise process.
        codec: Makes the latents of the images.
        batch: A batch on the net's device.
        generator: Generator of latents, timesteps and noise.
    """
    images, targets = [], []
    for group in batch.image_groups:
        latents = codec.latents(group.images, generator)  # (N, C, H, W)
        timesteps = noise.draw_timesteps(group.max_timesteps, generator)  # (N,)
        added = torch.randn(latents.shape, generator=generator, device=latents.device)
        images.append(NoisyImages(noise.add_noise(latents, added, timesteps), timesteps, group.at))
        targets.append(noise.target(latents, added, timesteps))
    output = net(
        batch.tokens,
        batch.positions,
        batch.document_ids,
        batch.image_ids,
        images,
        logit_positions=batch.target_positions,
        private=batch.private,
    )
    learned = [group.learned for group in batch.image_groups]
    timesteps = torch.cat([group.timesteps.index_select(0, i) for group, i in zip(images, learned, strict=True)])
    pairs = zip(output.image_predictions, targets, learned, strict=True)
    errors = [squared_error(predicted.index_select(0, i), target.index_select(0, i)) for predicted, target, i in pairs]
    return Compared(
        output.logits,
        batch.labels.flatten().index_select(0, batch.target_positions),
        torch.cat(errors) * noise.weight(timesteps),
        timesteps,
    )


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each image: (M, C, H, W), (M, C, H, W) → (M,) in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def check_clipping(noise: NoiseProcess, codec: Codec) -> None:
    """Raise InputError if sampling would clip latents to the range of pixels."""
    if getattr(noise, "clip_sample", False) and codec.downscale > 1:
        raise InputError(
            "model.noise.clip_sample true is for pixels only: it would clip latents to [-1, 1]; "
            "set model.noise.init_args.clip_sample to false"
        )
