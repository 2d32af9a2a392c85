"""What the losses of a batch are computed from: the net runs once, on noised images or on images as tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.image_tokens import images_as_text, positions_before
from lit_transfusion.data.types import PackedBatch
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec, Raw
from lit_transfusion.model import NoisyImages, Patcher, TransformerConfig, Transfusion
from lit_transfusion.training.auxiliary import AuxiliaryLoss, PatchStates


class Compared(NamedTuple):
    """What the losses of a batch are computed from. Images are in the order of their groups."""

    logits: Tensor  # (T + K, V) at the positions with a target, first those of the text, then those of codes
    targets: Tensor  # (T + K,) token ids
    image_errors: Tensor | None  # (M,) weighted mean squared error of each learned image; None for images as tokens
    num_codes: int = 0  # K
    auxiliary: Tensor | None = None  # (M,) the auxiliary loss of each learned image


def compare(
    net: Transfusion,
    noise: NoiseProcess,
    codec: Codec,
    batch: PackedBatch,
    generator: torch.Generator,
    first_code: int,
    auxiliary: AuxiliaryLoss | None = None,
) -> tuple[Compared, Tensor]:
    """Run the net on a batch: with noise in the images, or with images as tokens. See the two functions.

    Returns also the timesteps (M,) of the learned images, (0,) for images as tokens.
    """
    if noise.images_are_tokens:
        return run_with_codes(net, codec, batch, generator, first_code), torch.zeros(0, device=batch.tokens.device)
    return run_with_noise(net, noise, codec, batch, generator, auxiliary)


def run_with_noise(
    net: Transfusion,
    noise: NoiseProcess,
    codec: Codec,
    batch: PackedBatch,
    generator: torch.Generator,
    auxiliary: AuxiliaryLoss | None = None,
) -> tuple[Compared, Tensor]:
    """Add noise to each image at its own timestep, and run the net. Returns also the timesteps (M,).

    The error of one image is the mean over its channels and pixels, so that it does not depend on their number.

    Args:
        net: The net.
        noise: The noise process.
        codec: Makes the latents of the images.
        batch: A batch on the net's device.
        generator: Generator of latents, timesteps and noise.
        auxiliary: An auxiliary loss of the hidden states.
    """
    clean, images, targets = [], [], []
    for group in batch.image_groups:
        latents = codec.latents(group.images, generator)  # (N, C, H, W)
        timesteps = noise.draw_timesteps(group.max_timesteps, generator)  # (N,)
        added = torch.randn(latents.shape, generator=generator, device=latents.device)
        clean.append(latents)
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
        state_layer=None if auxiliary is None else auxiliary.layer,
    )
    learned = [group.learned for group in batch.image_groups]
    timesteps = torch.cat([group.timesteps.index_select(0, i) for group, i in zip(images, learned, strict=True)])
    pairs = zip(output.image_predictions, targets, learned, strict=True)
    errors = [squared_error(predicted.index_select(0, i), target.index_select(0, i)) for predicted, target, i in pairs]
    compared = Compared(
        output.logits,
        batch.labels.flatten().index_select(0, batch.target_positions),
        torch.cat(errors) * noise.weight(timesteps),
        auxiliary=auxiliary and auxiliary(patch_states(net, codec, batch, clean, output.patch_states)),
    )
    return compared, timesteps


def patch_states(
    net: Transfusion, codec: Codec, batch: PackedBatch, clean: Sequence[Tensor], states: Sequence[Tensor]
) -> list[PatchStates]:
    """The hidden states (N, P, D) of the patches, with their pictures, of the learned images only.

    Without pixels in the batch, a picture is decoded from its latents (N, C, H, W).
    """
    found = []
    for group, latents, of_patches in zip(batch.image_groups, clean, states, strict=True):
        pixels, learned = isinstance(group.images, Raw), group.learned
        pictures = (group.images.tensor if pixels else latents).index_select(0, learned)  # (M, …)
        pictures = pictures if pixels else codec.decode(pictures)  # (M, 3, height, width)
        found.append(PatchStates(of_patches.index_select(0, learned), net.patcher.grid(latents), pictures))
    return found


def run_with_codes(
    net: Transfusion, codec: Codec, batch: PackedBatch, generator: torch.Generator, first_code: int
) -> Compared:
    """Put the codes of the images into the rows as tokens, and run the net, to which they are like text.

    Args:
        net: The net.
        codec: Makes the codes of the images.
        batch: A batch on the net's device.
        generator: Generator of a codec that draws random numbers.
        first_code: Id of the token of code 0.
    """
    as_text = batch.image_groups, codec, first_code, generator
    tokens, image_ids = images_as_text(batch.tokens, batch.image_ids, *as_text)  # (B, L) each
    before = positions_before(batch.image_groups)  # (K,)
    at = torch.cat([batch.target_positions, before])  # (T + K,)
    output = net(tokens, batch.positions, batch.document_ids, image_ids, [], logit_positions=at)
    labels = batch.labels.flatten().index_select(0, batch.target_positions)  # (T,)
    targets = torch.cat([labels, tokens.flatten().index_select(0, before + 1)])  # (T + K,)
    return Compared(output.logits, targets, None, len(before))


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each image: (M, C, H, W), (M, C, H, W) → (M,) in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def check_parts(
    codec: Codec,
    patcher: Patcher,
    noise: NoiseProcess,
    config: TransformerConfig,
    image_loss_weight: float | None,
    auxiliary: AuxiliaryLoss | None,
) -> None:
    """Raise InputError if the parts do not fit together."""
    kinds = {
        f"data.codec {type(codec).__name__}": codec.num_codes is not None,
        f"model.patcher {type(patcher).__name__}": patcher.images_are_tokens,
        f"model.noise {type(noise).__name__}": noise.images_are_tokens,
    }
    if len(set(kinds.values())) > 1:
        of_tokens = " and ".join(name for name, tokens in kinds.items() if tokens)
        others = " and ".join(name for name, tokens in kinds.items() if not tokens)
        raise InputError(
            f"{of_tokens} is for images as tokens, but {others} is for images with noise; use data.codec VQ, "
            "model.patcher NoPatcher and model.noise NextToken together, or none of them"
        )
    if noise.images_are_tokens and config.groups_modalities:
        raise InputError(
            f"model.size.modality_weights {config.modality_weights} needs patches, but with model.noise NextToken an "
            "image is tokens; use none"
        )
    if auxiliary is not None and noise.images_are_tokens:
        raise InputError("model.auxiliary needs patches, but with model.noise NextToken an image is tokens; use null")
    if auxiliary is not None and not 1 <= auxiliary.layer <= config.n_layers:
        raise InputError(
            f"model.auxiliary: layer {auxiliary.layer} does not exist; use a number from 1 to {config.n_layers}"
        )
    if not noise.images_are_tokens and image_loss_weight is None:
        raise InputError("model.image_loss_weight null is for images as tokens (model.noise NextToken); use a number")
    if getattr(noise, "clip_sample", False) and codec.downscale > 1:
        raise InputError(
            "model.noise.clip_sample true is for pixels only: it would clip latents to [-1, 1]; "
            "set model.noise.init_args.clip_sample to false"
        )
