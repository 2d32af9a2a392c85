"""The two losses and their sum (paper, Equation 4), and the image loss by timestep."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.model.cross_entropy import SumOfCrossEntropy
from lit_transfusion.timestep_buckets import TIMESTEP_BUCKETS, bucket_names, bucket_of


class LossTerms(NamedTuple):
    """The losses of a batch."""

    total: Tensor  # L_LM + λ · L_DDPM + weight · z-loss, scalar
    text: Tensor  # L_LM in nats per token, scalar
    image: Tensor  # L_DDPM, scalar
    z: Tensor  # mean square of log Σ exp(logits) over the text targets, scalar
    per_image: Tensor  # (M,) L_DDPM of each learned image, weighted


def transfusion_loss(
    logits: Tensor,
    targets: Tensor,
    image_errors: Tensor,
    image_loss_weight: float,
    counts: Tensor | None = None,
    z_loss_weight: float = 0.0,
) -> LossTerms:
    """Compute the mean cross-entropy over text targets, plus λ times the mean error over images.

    A modality that the batch lacks has a loss of zero that still depends on its parameters, so that all gradients exist
    on all ranks.

    Args:
        logits: (T, V) at the positions with a target.
        targets: (T,) token ids.
        image_errors: (M,) weighted mean squared errors of the learned images.
        image_loss_weight: λ.
        counts: (2,) number of text targets and number of images by which sums are divided. An optimiser step uses the
            totals of all its micro-batches on all ranks; the sum of their losses is then that of one large batch,
            however it is split. None divides by T and M.
        z_loss_weight: Weight of the z-loss; 0 as in the paper.
    """
    if counts is None:
        counts = torch.tensor([len(targets), len(image_errors)])
    num_targets, num_images = counts.clamp(min=1).unbind()
    cross_entropy, squares = SumOfCrossEntropy.apply(logits, targets)
    text, z = cross_entropy / num_targets, squares / num_targets
    image = image_errors.sum() / num_images
    total = text + image_loss_weight * image
    if z_loss_weight:
        total = total + z_loss_weight * z
    return LossTerms(total, text, image, z, image_errors)


def sums_by_timestep(per_image: Tensor, timesteps: Tensor, num_timesteps: int) -> Tensor:
    """Return the sum of the losses and the number of images in each bucket of timesteps, (2, 8).

    Args:
        per_image: (M,) losses.
        timesteps: (M,) timesteps of the images, in [0, num_timesteps).
        num_timesteps: T.
    """
    values = torch.stack([per_image.detach(), torch.ones_like(per_image)])  # (2, M)
    return values.new_zeros(2, TIMESTEP_BUCKETS).index_add_(1, bucket_of(timesteps, num_timesteps), values)


def means_by_timestep(sums: list[float], num_timesteps: int) -> dict[str, tuple[float, int]]:
    """Return mean loss and number of images by the name of the metric. Buckets without an image are omitted.

    Args:
        sums: The values of `sums_by_timestep`, flattened.
        num_timesteps: T.
    """
    buckets = zip(bucket_names(num_timesteps), sums[:TIMESTEP_BUCKETS], sums[TIMESTEP_BUCKETS:], strict=True)
    return {f"loss_image_by_timestep/{name}": (error / count, int(count)) for name, error, count in buckets if count}
