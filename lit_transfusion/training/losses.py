"""The two losses and their sum (paper, Equation 4), over all that one optimiser step learns from."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.types import PackedBatch
from lit_transfusion.model.cross_entropy import SumOfCrossEntropy

TIMESTEP_BUCKETS = 8  # in the charts of the image loss by timestep


class LossTerms(NamedTuple):
    total: Tensor  # L_LM + λ · L_DDPM, scalar
    text: Tensor  # L_LM in nats per token, scalar
    image: Tensor  # L_DDPM, scalar
    per_image: Tensor  # (M,) L_DDPM of each image that is learned


def transfusion_loss(
    logits: Tensor,
    targets: Tensor,
    image_prediction: Tensor,
    image_target: Tensor,
    image_loss_weight: float,
    counts: Tensor | None = None,
) -> LossTerms:
    """Mean cross-entropy over text targets, plus λ times the mean squared error over images.

    The error of one image is its mean over channels and pixels, so that neither loss depends on how many tokens,
    patches or channels there are. A modality that the batch lacks has a loss of zero that still depends on its
    parameters, so that all ranks have all gradients.

    Args:
        logits: (T, V), only where there is a target.
        targets: (T,) token ids.
        image_prediction: (M, C, H, W) of the images that are learned.
        image_target: (M, C, H, W).
        image_loss_weight: λ.
        counts: (2,) how many text targets and how many images to divide by. An optimiser step divides each of its
            micro-batches, on each rank, by the counts of them all: the sum of the losses is then that of one large
            batch, however it is split. None divides by T and M.
    """
    if counts is None:
        counts = torch.tensor([len(targets), len(image_target)])
    num_targets, num_images = counts.clamp(min=1).unbind()
    text = SumOfCrossEntropy.apply(logits, targets) / num_targets
    per_image = (image_prediction.float() - image_target.float()).square().flatten(1).mean(1)  # (M,)
    image = per_image.sum() / num_images
    return LossTerms(text + image_loss_weight * image, text, image, per_image)


def sums_by_timestep(per_image: Tensor, timesteps: Tensor, num_timesteps: int) -> Tensor:
    """(2, 8): sum of the losses, and number of images, in each of eight buckets of timesteps.

    The mean over all timesteps hides where learning happens: large t is layout, small t is detail.

    Args:
        per_image: (M,) losses.
        timesteps: (M,) of the images, in [0, num_timesteps).
        num_timesteps: T.
    """
    buckets = timesteps * TIMESTEP_BUCKETS // num_timesteps  # (M,)
    values = torch.stack([per_image.detach(), torch.ones_like(per_image)])  # (2, M)
    return values.new_zeros(2, TIMESTEP_BUCKETS).index_add_(1, buckets, values)


class StepLosses:
    """The losses of one optimiser step, added up over its micro-batches and ranks.

    Args:
        counts: (2,) text targets and learned images of the whole step, on all ranks.
        num_timesteps: T.
    """

    def __init__(self, counts: Tensor, num_timesteps: int) -> None:
        self.counts = counts
        self.num_timesteps = num_timesteps
        self.sums = torch.zeros(2 + 2 * TIMESTEP_BUCKETS, device=counts.device)
        self.batches: list[PackedBatch] = []  # what it learns from on this rank

    def add(self, batch: PackedBatch, terms: LossTerms, timesteps: Tensor) -> None:
        """Add a micro-batch, whose losses are divided by `counts`."""
        self.batches.append(batch)
        by_timestep = sums_by_timestep(terms.per_image, timesteps, self.num_timesteps)  # (2, 8)
        self.sums += torch.cat([torch.stack([terms.text, terms.image]).detach(), by_timestep.flatten()])

    def values(self, image_loss_weight: float, gradient_norm: Tensor) -> dict[str, float]:
        """What to log of the step, by name; nothing of a modality or of timesteps that it lacks."""
        together = torch.cat(
            [self.sums, self.counts, gradient_norm[None]]
        ).tolist()  # once, since a GPU has to be waited for
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
    """The names of the buckets, by their first and last timestep: 000-124, 125-249, …"""
    starts = [-(-b * num_timesteps // TIMESTEP_BUCKETS) for b in range(TIMESTEP_BUCKETS + 1)]  # rounded up
    return [f"{start:03d}-{stop - 1:03d}" for start, stop in pairwise(starts)]
