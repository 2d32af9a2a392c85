"""Runs a net on images that all have one shape, given as tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.model import NoisyImages


class Output(NamedTuple):
    logits: Tensor  # (T, V)
    image_prediction: Tensor  # (N, C, H, W)


def noisy(images, timesteps, image_ids):
    """The groups of images for a net: one, or none without images."""
    at = (image_ids.flatten() >= 0).nonzero()[:, 0]
    return [NoisyImages(images, timesteps, at.view(len(images), -1) if len(images) else at.view(0, 0))]


def given(args):
    """The images (N, C, H, W) and timesteps (N,) in the arguments of a net; both are empty without images."""
    if not args[4]:
        return torch.zeros(0), torch.zeros(0)
    (group,) = args[4]
    return group.values, group.timesteps


def run(net, tokens, positions, document_ids, image_ids, images, timesteps, logit_positions, *args, **options):
    groups = noisy(images, timesteps, image_ids)
    output = net(tokens, positions, document_ids, image_ids, groups, logit_positions, *args, **options)
    return Output(output.logits, output.image_predictions[0])
