"""From a picture file to a square tensor, whatever camera, scanner or drawing program it comes from."""

import io
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from lit_transfusion.data.picture_metadata import upright, without_metadata
from lit_transfusion.errors import InputError

JPEG_FACTOR = 4  # times Pillow's limit; a JPEG that is stored in several scans is in memory in full at first


class TooLarge(ValueError):
    """More pixels than may be decoded. The message is the reason."""


def read_image(file: str | Path | BinaryIO, image_size: int) -> Tensor:
    """The middle square of a picture as float32 (3, image_size, image_size) in [-1, 1]. See `read_pixels`."""
    return to_unit_range(read_pixels(file, image_size))


def read_pixels(file: str | Path | BinaryIO, image_size: int) -> Tensor:
    """The middle square of a picture as uint8 RGB (3, image_size, image_size), upright, transparency on white.

    Of the metadata only the orientation counts; nothing that is broken in it keeps a picture from being read.

    Raises:
        ValueError: The picture cannot be used. The message is a short reason that is the same for all of one kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata
            try:
                image = decoded(file, image_size)
            except TooLarge:
                raise
            except Exception as error:  # what Pillow raises depends on the format and on what is broken
                image = decoded_without_metadata(file, image_size, error)
    except TooLarge:
        raise
    except FileNotFoundError as error:
        raise ValueError("does not exist") from error
    except UnidentifiedImageError as error:
        raise ValueError("cannot be read: not a picture of a known format") from error
    except Exception as error:
        raise ValueError(f"cannot be read: {reason_of(error)}") from error
    return square(image, image_size)


def decoded(file: str | Path | BinaryIO, image_size: int) -> Image.Image:
    """An upright RGB picture, of a JPEG not much larger than is needed.

    Raises:
        TooLarge: It has more pixels than Pillow's limit, Image.MAX_IMAGE_PIXELS; of a JPEG, as it would be decoded.
    """
    with opened(file) as image:
        check_size(image, JPEG_FACTOR if isinstance(image, JpegImageFile) else 1)
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the time and memory. Twice the wanted
        # size is left for the filter in `square`, so that the result hardly differs.
        image.draft(None, (2 * image_size, 2 * image_size))
        check_size(image)
        image.load()
        return to_rgb(upright(image))


def opened(file: str | Path | BinaryIO) -> Image.Image:
    """A picture whose header was read. Pillow's `open` judges by the header alone, which says too much of a JPEG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow raises only at twice its limit
            return Image.open(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        if not isinstance(file, str | Path):
            file.seek(0)
        try:
            return JpegImageFile(file)
        except SyntaxError:  # no JPEG
            raise TooLarge(too_large()) from error


def check_size(image: Image.Image, factor: int = 1) -> None:
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > factor * Image.MAX_IMAGE_PIXELS:
        raise TooLarge(too_large(factor))


def too_large(factor: int = 1) -> str:
    return f"larger than {factor * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"


def decoded_without_metadata(file: str | Path | BinaryIO, image_size: int, error: Exception) -> Image.Image:
    """What can be decoded of a picture once its metadata is gone; raises `error` if there is no more than before."""
    if isinstance(file, str | Path):
        content = Path(file).read_bytes()
    else:
        file.seek(0)
        content = file.read()
    rest = without_metadata(content)
    if rest == content:
        raise error
    try:
        return decoded(io.BytesIO(rest), image_size)
    except TooLarge:
        raise
    except Exception:
        raise error from None


def reason_of(error: Exception) -> str:
    """What a library says of a picture, without the numbers of this one."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"\d+", "N", " ".join(message.split()))[:100]


def square(image: Image.Image, image_size: int) -> Tensor:
    """The middle square of an RGB picture as uint8 (3, image_size, image_size)."""
    image = transforms.center_crop(image, [min(image.size)])
    image = transforms.resize(image, [image_size], InterpolationMode.LANCZOS)  # antialiased, as always in Pillow
    return transforms.pil_to_tensor(image)


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] → float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Whatever a picture is made of, transparency on white."""
    if image.mode == "F":
        raise InputError("floating-point pixels have no range that a reader could know")
    if image.mode.startswith("I"):  # 16-bit grey (or 32-bit holding 16): Pillow would cut off all above 255
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
