"""The two losses and their sum (paper, Equation 4), and the one of images by timestep."""

from typing import NamedTuple

import torch
from torch import Tensor

TIMESTEP_BUCKETS = 8  # of the charts
# Logits that are worked on at once: as many as a CPU's cache holds, or as keep a GPU busy.
AT_ONCE = {"cpu": 2**18, "cuda": 2**26}


class LossTerms(NamedTuple):
    total: Tensor  # L_LM + λ · L_DDPM, scalar
    text: Tensor  # L_LM in nats per token, scalar
    image: Tensor  # L_DDPM, scalar
    per_image: Tensor  # (M,) L_DDPM of each image that is learned, for plots by timestep


def transfusion_loss(
    logits: Tensor, targets: Tensor, image_prediction: Tensor, image_target: Tensor, image_loss_weight: float
) -> LossTerms:
    """Mean cross-entropy over the (T, V) logits, and squared error meaned over an image's elements, then over images.

    Only what is learned is given: logits where there is a target, images that have a loss.

    The means make both losses independent of how many tokens, patches or channels there are. A modality that a batch
    lacks has a loss of zero which still hangs on its parameters, so that all ranks have all gradients.
    """
    text = SumOfCrossEntropy.apply(logits, targets) / max(len(targets), 1)
    per_image = (image_prediction.float() - image_target.float()).square().flatten(1).mean(1)  # (M,)
    image = per_image.sum() / max(len(per_image), 1)
    return LossTerms(text + image_loss_weight * image, text, image, per_image)


def mean_by_timestep(per_image: Tensor, timesteps: Tensor, num_timesteps: int) -> dict[str, tuple[Tensor, int]]:
    """Mean loss and number of images in each of eight buckets of timesteps, of those that have any: 000-124, 125-249, …
    The mean over all timesteps hides where learning happens: large t is layout, small t is detail.

    Args:
        per_image: (M,) losses.
        timesteps: (M,) of the images, in [0, T).
        num_timesteps: T.
    """
    buckets = timesteps * TIMESTEP_BUCKETS // num_timesteps  # (M,)
    means = {}
    for bucket in buckets.unique().tolist():
        inside = buckets == bucket
        first, end = (-(-b * num_timesteps // TIMESTEP_BUCKETS) for b in (bucket, bucket + 1))  # rounded up
        means[f"{first:03d}-{end - 1:03d}"] = per_image[inside].mean().detach(), int(inside.sum())
    return means


class SumOfCrossEntropy(torch.autograd.Function):
    """Cross-entropy of (T, V) logits and (T,) targets, in float32, summed. The gradient takes the place of the logits.

    With a large vocabulary the logits are the largest tensor of a step. `F.cross_entropy` makes three more of their
    size, in float32; this makes none. A second backward pass through the same logits is an error.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        log_sums = [rows.float().logsumexp(1) for rows in logits.split(rows_at_once(logits))]
        log_sum = torch.cat(log_sums)  # (T,)
        ctx.save_for_backward(logits, targets, log_sum)
        return (log_sum - logits.gather(1, targets[:, None])[:, 0].float()).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Softmax less one at the target."""
        logits, targets, log_sum = ctx.saved_tensors
        pieces = (x.split(rows_at_once(logits)) for x in (logits, targets, log_sum))
        for rows, target, row_log_sum in zip(*pieces, strict=True):
            softmax = rows.float().sub_(row_log_sum[:, None]).exp_()  # in float32, these are the rows themselves
            softmax.scatter_add_(1, target[:, None], torch.full_like(target[:, None], -1, dtype=softmax.dtype))
            rows.copy_(softmax.mul_(gradient))
        return logits, None


def rows_at_once(logits: Tensor) -> int:
    return max(1, AT_ONCE.get(logits.device.type, 2**18) // logits.shape[1])
