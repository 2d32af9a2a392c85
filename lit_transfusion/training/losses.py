"""The two losses and their sum (paper, Equation 4)."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LossTerms(NamedTuple):
    total: Tensor  # L_LM + λ · L_DDPM, scalar
    text: Tensor  # L_LM in nats per token, scalar
    image: Tensor  # L_DDPM, scalar
    per_image: Tensor  # (N,) L_DDPM of each image that is learned, for plots by timestep


def transfusion_loss(
    logits: Tensor, targets: Tensor, image_prediction: Tensor, image_target: Tensor, image_loss_weight: float
) -> LossTerms:
    """Mean cross-entropy over the (T, V) logits, and squared error meaned over an image's elements, then over images.

    Only what is learned is given: logits where there is a target, images that have a loss.

    The means make both losses independent of how many tokens, patches or channels there are. A modality that a batch
    lacks has a loss of zero which still hangs on its parameters, so that all ranks have all gradients.
    """
    text = F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)
    per_image = (image_prediction.float() - image_target.float()).square().flatten(1).mean(1)  # (N,)
    image = per_image.sum() / max(len(per_image), 1)
    return LossTerms(text + image_loss_weight * image, text, image, per_image)
