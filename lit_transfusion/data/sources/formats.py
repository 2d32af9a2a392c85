"""The picture formats that are read, and the fix for those that are not."""

import contextlib
import os
from importlib.util import find_spec

from PIL import features

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CONVERT = "convert to .png or .jpg"
NOT_READ = {
    ".avif": "pip install 'pillow>=11.3'",
    ".heic": "pip install pillow-heif",
    ".heif": "pip install pillow-heif",
    ".hif": "pip install pillow-heif",
    ".jxl": "pip install pillow-jxl-plugin",
    **dict.fromkeys((".svg", ".svgz", ".psd", ".xcf", ".tga", ".ppm", ".pgm", ".jp2", ".exr"), CONVERT),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), CONVERT),
}

# Formats that are read if their library is installed.
if "avif" in features.modules and features.check("avif"):
    PICTURE_SUFFIXES += (".avif",)
if find_spec("pillow_heif"):
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        PICTURE_SUFFIXES += (".heic", ".heif", ".hif")
if find_spec("pillow_jxl"):
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401 (it registers itself)

        PICTURE_SUFFIXES += (".jxl",)


def is_picture_name(name: str) -> bool:
    """Whether the suffix of a file is that of a picture format that is read. Its case does not matter."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def why_not_read(name: str) -> str | None:
    """Reason and fix if a file is a picture in a format that is not read; None if it is read or not a picture."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in PICTURE_SUFFIXES or suffix not in NOT_READ:
        return None
    return f"in the format {suffix}, which is not read here ({NOT_READ[suffix]})"
