"""Read picture files of any camera, scanner or drawing program as tensors: cropped to a square, or nearly uncropped."""

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from lit_transfusion.data.picture_metadata import upright, without_metadata
from lit_transfusion.errors import InputError

JPEG_FACTOR = 4  # multiple of Pillow's limit; a JPEG stored in several scans is first loaded in full size


class TooLarge(ValueError):
    """The picture has too many pixels to decode. The message is the reason."""


def read_image(file: str | Path | BinaryIO, image_size: int, multiple_of: int | None = None) -> Tensor:
    """Read a picture as float32 (3, height, width) in [-1, 1]. See `read_pixels`."""
    return to_unit_range(read_pixels(file, image_size, multiple_of))


def read_pixels(file: str | Path | BinaryIO, image_size: int, multiple_of: int | None = None) -> Tensor:
    """Read a picture as uint8 RGB (3, height, width), upright, with transparency on white.

    Only the orientation is read from the metadata. Broken metadata is ignored.

    Args:
        file: The picture.
        image_size: Side of the square to which the middle of the picture is resized.
        multiple_of: If not None, the picture keeps its aspect ratio, see `fitted_size`.

    Raises:
        ValueError: The picture cannot be used. The message is a short reason, the same for all pictures of one kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about broken metadata
            try:
                image = decode(file, image_size)
            except Exception as error:  # the exception class depends on the format and the fault
                image = decode_without_metadata(file, image_size, error)
    except Exception as error:
        raise ValueError(reason_of(error)) from error
    return fit(image, image_size, multiple_of)


def decode(file: str | Path | BinaryIO, image_size: int) -> Image.Image:
    """Decode a picture as upright RGB. A JPEG is decoded at a reduced size if that is large enough.

    Raises:
        TooLarge: The picture has more pixels than Image.MAX_IMAGE_PIXELS. For a JPEG, the decoded size counts.
    """
    with open_picture(file) as image:
        check_size(image, JPEG_FACTOR if isinstance(image, JpegImageFile) else 1)
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the time and memory. Keep twice the
        # target size or more for the filter in `fit`, so that the result hardly differs.
        image.draft(None, (2 * image_size, 2 * image_size))
        check_size(image)
        image.load()
        return to_rgb(upright(image))


def open_picture(file: str | Path | BinaryIO) -> Image.Image:
    """Open a picture and read its header. Pillow applies its size limit to the header, but a JPEG can be decoded at a
    smaller size, so a JPEG is opened without that limit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow raises only at twice its limit
            return Image.open(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        if not isinstance(file, str | Path):
            file.seek(0)
        try:
            return JpegImageFile(file)
        except SyntaxError:  # not a JPEG
            raise TooLarge(too_large()) from error


def check_size(image: Image.Image, factor: int = 1) -> None:
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > factor * Image.MAX_IMAGE_PIXELS:
        raise TooLarge(too_large(factor))


def too_large(factor: int = 1) -> str:
    return f"larger than {factor * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"


def decode_without_metadata(file: str | Path | BinaryIO, image_size: int, error: Exception) -> Image.Image:
    """Remove the metadata and decode the rest. Raises `error` if that cannot help or decoding fails again."""
    if isinstance(error, TooLarge | FileNotFoundError):
        raise error
    if isinstance(file, str | Path):
        content = Path(file).read_bytes()
    else:
        file.seek(0)
        content = file.read()
    rest = without_metadata(content)
    if rest == content:
        raise error
    try:
        return decode(io.BytesIO(rest), image_size)
    except Exception as again:
        raise again if isinstance(again, TooLarge) else error from None


def reason_of(error: Exception) -> str:
    """Why a picture cannot be used. Without numbers, so that equal faults of different pictures have equal reasons."""
    match error:
        case TooLarge():
            return str(error)
        case FileNotFoundError():
            return "does not exist"
        case UnidentifiedImageError():
            return "cannot be read: not a picture of a known format"
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "cannot be read: " + re.sub(r"\d+", "N", " ".join(message.split()))[:100]


def fit(image: Image.Image, image_size: int, multiple_of: int | None = None) -> Tensor:
    """Crop and resize an RGB picture to uint8 (3, height, width), the size that `fitted_size` chooses."""
    from torchvision.transforms.v2 import InterpolationMode  # imported here, since it takes a second
    from torchvision.transforms.v2 import functional as transforms

    height, width = fitted_size(image.height, image.width, image_size, multiple_of)
    scale = min(image.height / height, image.width / width)
    crop = [max(1, min(round(height * scale), image.height)), max(1, min(round(width * scale), image.width))]
    image = transforms.center_crop(image, crop)
    image = transforms.resize(image, [height, width], InterpolationMode.LANCZOS)  # antialiased, like Pillow's resize
    return transforms.pil_to_tensor(image)


@lru_cache(maxsize=4096)
def fitted_size(height: int, width: int, image_size: int, multiple_of: int | None = None) -> tuple[int, int]:
    """Choose the height and width to which a picture is resized, after its margins are cropped.

    Without `multiple_of`, it is a square with sides of `image_size`. With it, the sides are multiples of it, and the
    area is that of the square or less. Among these sizes, the choice keeps much of the picture (less than one multiple
    is cropped, if possible) and uses much of the area.
    """
    if multiple_of is None:
        return image_size, image_size
    most = (image_size // multiple_of) ** 2

    def cost(rows: int, columns: int) -> tuple[float, float]:
        tall, wide = columns * height / width, rows * width / height  # the whole picture, scaled to the other side
        cropped = max(tall - rows, wide - columns)  # one of them is at least 0
        kept = min(rows / tall, columns / wide)
        return max(cropped - 1, 0.0), -(kept**2) * rows * columns

    grids = []
    for rows in range(1, most + 1):
        wide, widest = rows * width / height, most // rows
        grids += [(rows, min(max(columns, 1), widest)) for columns in (int(wide), int(wide) + 1)]
    rows, columns = min(grids, key=lambda grid: cost(*grid))
    return rows * multiple_of, columns * multiple_of


def map_by_size(function: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """Apply a function to the stacked images of each size, (n, C, height, width) → (n, …).

    Returns the results of the single images, in the order of the images.
    """
    indices = defaultdict(list)
    for i, image in enumerate(images):
        indices[image.shape].append(i)
    found: dict[int, Tensor] = {}
    for same in indices.values():
        found |= zip(same, function(torch.stack([images[i] for i in same])), strict=True)
    return [found[i] for i in range(len(images))]


def to_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 in [0, 255] to float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB, with transparency on white."""
    if image.mode == "F":
        raise InputError("floating-point pixels have no known range; convert them to integers")
    if image.mode.startswith("I"):  # 16-bit grey, also in 32 bits: Pillow would clip values above 255
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
