"""From a picture file to a square tensor, whatever camera, scanner or drawing program it comes from."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from lit_transfusion.errors import InputError


def read_image(file: str | Path | BinaryIO, image_size: int) -> Tensor:
    """The middle square of a picture as float32 (3, image_size, image_size) in [-1, 1]. See `read_pixels`."""
    return to_unit_range(read_pixels(file, image_size))


def read_pixels(file: str | Path | BinaryIO, image_size: int) -> Tensor:
    """The middle square of a picture as uint8 RGB (3, image_size, image_size), upright, transparency on white.

    Raises:
        ValueError: The picture cannot be used. The message is a short reason that is the same for all of one kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow raises only at twice its limit
            image = Image.open(file)
        with image:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the time. Twice the wanted size
            # is left for the filter below, so that the result hardly differs.
            image.draft(None, (2 * image_size, 2 * image_size))
            image = to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ValueError("does not exist") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"larger than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels") from error
    except Exception as error:  # what Pillow raises on a broken file depends on the format and on what is broken
        raise ValueError("cannot be read") from error
    return square(image, image_size)


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
