"""The patch GAN, which makes reconstructions sharp: a discriminator, its loss, and that of the autoencoder."""

from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lit_transfusion.autoencoders.bottlenecks import Term
from lit_transfusion.errors import InputError, check_at_least


class PatchGAN(nn.Module):
    """A discriminator of patches (Isola et al., 2017), with the hinge loss (paper, 4.1; Esser et al., 2021).

    Both losses are in one sum with one backward pass: the loss of the autoencoder sees frozen weights of the
    discriminator, and the loss of the discriminator sees detached reconstructions.

    Args:
        start_step: Optimiser step from which the discriminator is trained and the autoencoder has a GAN loss.
        weight: Weight of the GAN loss of the autoencoder (paper: 0.5).
        adaptive: Multiply `weight` by the ratio of the norms of the gradients of the reconstruction losses and of the
            GAN loss in the last layer of the decoder, at most 10⁴.
        channels: Channels of the first layer; each further one has twice as many, at most 8 times.
        layers: Layers that halve the sides. A patch then has 16, 34 or 70 pixels a side for 1, 2 or 3.
    """

    def __init__(
        self, start_step: int = 0, weight: float = 0.5, adaptive: bool = True, channels: int = 64, layers: int = 3
    ) -> None:
        super().__init__()
        check_at_least("model.gan.start_step", start_step, 0)
        check_at_least("model.gan.layers", layers)
        self.start_step = start_step
        self.weight = weight
        self.adaptive = adaptive
        self.halvings = layers
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if i < layers - 1 else 1
            # Groups instead of a batch norm: nothing depends on the other pictures, or on the number of processes.
            norm = nn.GroupNorm(1, after)
            parts += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False), norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def check_size(self, image_size: int) -> None:
        """Raise InputError if pictures of this size are too small."""
        least = 3 * 2**self.halvings  # the last two layers remove one position each
        if image_size < least:
            raise InputError(
                f"model.gan.layers {self.halvings} needs pictures of at least {least} pixels a side, but "
                f"data.image_size is {image_size}; use fewer layers"
            )

    def forward(self, pictures: Tensor) -> Tensor:
        """Score the patches of pictures (N, 3, H, W): (N, 1, h, w), high for pictures of the data."""
        return self.layers(pictures)

    def terms(
        self, pictures: Tensor, reconstruction: Tensor, reconstruction_loss: Tensor, last_layer: Tensor, step: int
    ) -> dict[str, Term]:
        """The losses of the autoencoder (`gan`) and of the discriminator.

        Args:
            pictures: (N, 3, H, W).
            reconstruction: The same pictures from the decoder, with their graph.
            reconstruction_loss: The weighted sum of all reconstruction losses, a scalar with its graph.
            last_layer: Weight of the last layer of the decoder.
            step: Number of optimiser steps made so far.
        """
        if step < self.start_step:
            # Every process must use all weights in every step, or DDP waits for their gradients.
            unused = sum(parameter.sum() for parameter in self.parameters())
            return {"discriminator": Term(0.0 * unused, 1.0)}
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        gan = -functional_call(self, frozen, (reconstruction,)).float().mean()
        ratio = adaptive_weight(reconstruction_loss, gan, last_layer) if self.adaptive else 1.0
        discriminator = hinge_loss(self(pictures).float(), self(reconstruction.detach()).float())
        return {"gan": Term(gan, self.weight * ratio), "discriminator": Term(discriminator, 1.0)}


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The loss of a discriminator: scores of pictures of the data should be above 1, those of others below -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction_loss: Tensor, gan_loss: Tensor, last_layer: Tensor) -> Tensor:
    """The ratio of the norms of two gradients with respect to `last_layer`, at most 10⁴ (Esser et al., 2021).

    The gradients are means over all processes, so that the ratio is the same on each.
    """
    norms = []
    for loss in (reconstruction_loss, gan_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(gradient)
            gradient = gradient / dist.get_world_size()
        norms.append(gradient.norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
