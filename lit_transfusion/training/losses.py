"""The two losses and their sum (paper, Equation 4), and the image loss by timestep."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_transfusion.model.cross_entropy import CrossEntropy
from lit_transfusion.timestep_buckets import TIMESTEP_BUCKETS, bucket_names, bucket_of
from lit_transfusion.training.objective import Compared

Number = Any  # a number, or a scalar tensor


class LossWeights(NamedTuple):
    """The weights of the losses in their sum; that of the text is 1."""

    image: float | None  # λ; None weights text and codes by their numbers, as one cross-entropy over all tokens
    z: float = 0.0
    auxiliary: float = 0.0

    def of_modalities(self, num_targets: Number, num_codes: Number) -> tuple[Number, Number]:
        """Return the weights of the losses of text and images, for these numbers of text targets and codes."""
        if self.image is not None:
            return 1.0, self.image
        number = num_targets + num_codes + (num_targets + num_codes == 0)
        return num_targets / number, num_codes / number


class LossTerms(NamedTuple):
    """The losses of a batch."""

    total: Tensor  # L_LM + λ · L_image + weight · z-loss, scalar
    text: Tensor  # L_LM in nats per token, scalar
    image: Tensor  # L_DDPM, or for images as tokens the cross-entropy in nats per code, scalar
    z: Tensor  # mean square of log Σ exp(logits) over all targets, scalar
    auxiliary: Tensor  # mean of the auxiliary loss over the learned images, scalar; 0 without one
    per_image: Tensor  # (M,) L_DDPM of each learned image, weighted; (0,) for images as tokens


def transfusion_loss(compared: Compared, weights: LossWeights, counts: Tensor | None = None) -> LossTerms:
    """Compute the mean cross-entropy over text targets, plus λ times the mean error over images.

    For images as tokens, the error is the cross-entropy of a code, and the mean is that over all codes.

    A modality that the batch lacks has a loss of zero that still depends on its parameters, so that all gradients exist
    on all ranks.

    Args:
        compared: Logits with their targets, and the errors of the images.
        weights: Weights of the losses in their sum.
        counts: (2,) number of text targets and number of images (or codes) by which sums are divided. An optimiser step
            uses the totals of all its micro-batches on all ranks; the sum of their losses is then that of one large
            batch, however it is split. None divides by the numbers of this batch.
    """
    logits, targets, image_errors, num_codes, auxiliary = compared
    num_text = len(targets) - num_codes
    if counts is None:
        counts = torch.tensor([num_text, num_codes if image_errors is None else len(image_errors)])
    num_targets, num_images = counts.clamp(min=1).unbind()
    cross_entropy, squares = CrossEntropy.apply(logits, targets)  # (T + K,), (T + K,)
    of_text, of_codes = cross_entropy.split([num_text, num_codes])
    text = of_text.sum() / num_targets
    image = (of_codes if image_errors is None else image_errors).sum() / num_images
    z = squares.sum() / (num_targets if image_errors is not None else counts.sum().clamp(min=1))
    extra = image.new_zeros(()) if auxiliary is None else auxiliary.sum() / num_images
    of_text, of_image = weights.of_modalities(*counts)
    total = of_text * text + of_image * image
    if weights.z:
        total = total + weights.z * z
    if auxiliary is not None:
        total = total + weights.auxiliary * extra
    return LossTerms(total, text, image, z, extra, logits.new_zeros(0) if image_errors is None else image_errors)


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
