"""The two losses and their sum (paper, Equation 4), over all batches of an optimiser step."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.types import PackedBatch
from lit_transfusion.model.cross_entropy import SumOfCrossEntropy

TIMESTEP_BUCKETS = 8  # in the charts of the image loss by timestep


class LossTerms(NamedTuple):
    """The losses of a batch."""

    total: Tensor  # L_LM + λ · L_DDPM, scalar
    text: Tensor  # L_LM in nats per token, scalar
    image: Tensor  # L_DDPM, scalar
    per_image: Tensor  # (M,) L_DDPM of each learned image


def transfusion_loss(
    logits: Tensor,
    targets: Tensor,
    image_prediction: Tensor,
    image_target: Tensor,
    image_loss_weight: float,
    counts: Tensor | None = None,
) -> LossTerms:
    """Compute the mean cross-entropy over text targets, plus λ times the mean squared error over images.

    The error of one image is the mean over its channels and pixels, so that neither loss depends on the number of
    tokens, patches or channels. A modality that the batch lacks has a loss of zero that still depends on its
    parameters, so that all gradients exist on all ranks.

    Args:
        logits: (T, V) at the positions with a target.
        targets: (T,) token ids.
        image_prediction: (M, C, H, W) predictions for the learned images.
        image_target: (M, C, H, W) their targets.
        image_loss_weight: λ.
        counts: (2,) number of text targets and number of images by which sums are divided. An optimiser step uses the
            totals of all its micro-batches on all ranks; the sum of their losses is then that of one large batch,
            however it is split. None divides by T and M.
    """
    if counts is None:
        counts = torch.tensor([len(targets), len(image_target)])
    num_targets, num_images = counts.clamp(min=1).unbind()
    text = SumOfCrossEntropy.apply(logits, targets) / num_targets
    per_image = (image_prediction.float() - image_target.float()).square().flatten(1).mean(1)  # (M,)
    image = per_image.sum() / num_images
    return LossTerms(text + image_loss_weight * image, text, image, per_image)


def sums_by_timestep(per_image: Tensor, timesteps: Tensor, num_timesteps: int) -> Tensor:
    """Return the sum of the losses and the number of images in each of eight buckets of timesteps, (2, 8).

    The mean over all timesteps hides what is learned: large t is layout, small t is detail.

    Args:
        per_image: (M,) losses.
        timesteps: (M,) timesteps of the images, in [0, num_timesteps).
        num_timesteps: T.
    """
    buckets = timesteps * TIMESTEP_BUCKETS // num_timesteps  # (M,)
    values = torch.stack([per_image.detach(), torch.ones_like(per_image)])  # (2, M)
    return values.new_zeros(2, TIMESTEP_BUCKETS).index_add_(1, buckets, values)


class StepLosses:
    """Sums the losses of one optimiser step over its micro-batches and ranks.

    Args:
        counts: (2,) number of text targets and of learned images in the whole step, on all ranks.
        num_timesteps: T.
    """

    def __init__(self, counts: Tensor, num_timesteps: int) -> None:
        self.counts = counts
        self.num_timesteps = num_timesteps
        self.sums = torch.zeros(2 + 2 * TIMESTEP_BUCKETS, device=counts.device)
        self.batches: list[PackedBatch] = []  # of this rank

    def add(self, batch: PackedBatch, terms: LossTerms, timesteps: Tensor) -> None:
        """Add a micro-batch. Its losses must be divided by `counts`."""
        self.batches.append(batch)
        by_timestep = sums_by_timestep(terms.per_image, timesteps, self.num_timesteps)  # (2, 8)
        self.sums += torch.cat([torch.stack([terms.text, terms.image]).detach(), by_timestep.flatten()])

    def values(self, image_loss_weight: float, gradient_norm: Tensor) -> dict[str, float]:
        """Return the values to log, by name. Modalities and timesteps that the step lacks are omitted."""
        # One transfer, because each one synchronises the GPU.
        together = torch.cat([self.sums, self.counts, gradient_norm[None]]).tolist()
        text, image, *by_timestep, num_targets, num_images, norm = together
        values = {"loss": text + image_loss_weight * image, "grad_norm": norm}
        if num_targets:
            values |= {"loss_text": text, "perplexity": math.exp(min(text, 700.0))}
        if num_images:
            values["loss_image"] = image
        errors, images = by_timestep[:TIMESTEP_BUCKETS], by_timestep[TIMESTEP_BUCKETS:]
        for bucket, error, count in zip(timestep_buckets(self.num_timesteps), errors, images, strict=True):
            if count:
                values[f"loss_image_by_timestep/{bucket}"] = error / count
        return values


def timestep_buckets(num_timesteps: int) -> list[str]:
    """Return the names of the buckets, which are their first and last timestep: 000-124, 125-249, …"""
    starts = [-(-b * num_timesteps // TIMESTEP_BUCKETS) for b in range(TIMESTEP_BUCKETS + 1)]  # rounded up
    return [f"{start:03d}-{stop - 1:03d}" for start, stop in pairwise(starts)]
