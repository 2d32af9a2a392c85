"""Read the orientation of a picture file, and remove all other metadata, even if it is broken.

EXIF of real cameras and programs contains tags of any type. Pillow fails on some of them when it rotates a picture,
and on broken profiles, texts and checksums when it opens one.
"""

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

ORIENTATION = 0x0112
UPRIGHT = {  # orientation → the operation that turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
NUMBERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l"}  # TIFF type → struct's letter
# Tags that are necessary to decode the pixels of a TIFF, and its orientation.
PIXEL_TAGS = {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, *range(322, 326), 338, 339}
PIXEL_TAGS |= {347, 529, 530, 531, 532}


def upright(image: Image.Image) -> Image.Image:
    """Turn a loaded picture upright by its orientation. Broken metadata is ignored."""
    turn = UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int | None:
    """The orientation of a picture, 1 to 8, from its EXIF or from other metadata that Pillow reads, such as XMP."""
    exif = image.info.get("exif")
    found = orientation_in(exif) if isinstance(exif, bytes) else None
    if found is None:
        try:
            found = image.getexif().get(ORIENTATION)
        except Exception:  # the exception class depends on the fault
            return None
    return found if isinstance(found, int) and 1 <= found <= 8 else None


def orientation_in(exif: bytes) -> int | None:
    """The orientation in EXIF, read without Pillow, which fails at a broken tag before it."""
    tiff = exif.removeprefix(b"Exif\0\0")
    try:
        order, entries = directory(tiff)
        for tag, kind, _, value in entries:
            if tag == ORIENTATION and kind in NUMBERS:
                return struct.unpack_from(order + NUMBERS[kind], value)[0]
    except (KeyError, struct.error):
        pass
    return None


def directory(tiff: bytes) -> tuple[str, list[tuple[int, int, int, bytes]]]:
    """Byte order of a TIFF, as in `struct`, and (tag, type, count, value) of each entry in its first directory."""
    order = {b"II*\0": "<", b"MM\0*": ">"}[tiff[:4]]
    (start,) = struct.unpack_from(order + "L", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    whole = min(count, (len(tiff) - start - 2) // 12)
    return order, [struct.unpack_from(order + "HHL4s", tiff, start + 2 + 12 * i) for i in range(whole)]


def without_metadata(content: bytes) -> bytes:
    """Remove the metadata of a JPEG, PNG, WebP or TIFF file, except its orientation. Other files are unchanged.

    In a truncated or broken file, metadata is removed up to the fault.
    """
    if content.startswith(b"\xff\xd8"):
        return jpeg_without_metadata(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return png_without_metadata(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return webp_without_metadata(content)
    if content.startswith((b"II*\0", b"MM\0*")):
        return tiff_without_metadata(content)
    return content


def only_orientation(exif: bytes) -> bytes | None:
    """EXIF that contains only the orientation; None or 0 if there is none."""
    found = orientation_in(exif)
    return found and b"MM\0*" + struct.pack(">LHHHLHHL", 8, 1, ORIENTATION, 3, 1, found, 0, 0)


def jpeg_without_metadata(content: bytes) -> bytes:
    kept, place = [content[:2]], 2
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        segment = content[place:end]
        if marker == 0xDA:  # the pixels start here
            break
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            if exif := only_orientation(segment[4:]):
                exif = b"Exif\0\0" + exif
                kept.append(b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif)
        elif marker == 0xEE or not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # Adobe's segment defines the colours
            kept.append(segment)
        place = end
    return b"".join([*kept, content[place:]])


def png_without_metadata(content: bytes) -> bytes:
    kept = [content[:8]]
    for kind, data, chunk in chunks(content, 8, "big", lambda size: 8 + size + 4):
        if kind == b"eXIf":
            if exif := only_orientation(data):
                kept.append(len(exif).to_bytes(4, "big") + kind + exif + zlib.crc32(kind + exif).to_bytes(4, "big"))
        elif kind[:1].isupper() or kind == b"tRNS":  # an upper-case letter marks a critical chunk
            kept.append(chunk)
    return b"".join(kept)


def webp_without_metadata(content: bytes) -> bytes:
    kept = []
    for kind, data, chunk in chunks(content, 12, "little", lambda size: 8 + size + size % 2):
        if kind == b"EXIF":
            if exif := only_orientation(data):
                kept.append(kind + len(exif).to_bytes(4, "little") + exif)
        elif kind == b"VP8X":
            kept.append(chunk[:8] + bytes([chunk[8] & ~0b0010_0100]) + chunk[9:])  # no profile, no XMP
        elif kind not in (b"ICCP", b"XMP "):
            kept.append(chunk)
    size = 4 + sum(map(len, kept))
    return b"RIFF" + size.to_bytes(4, "little") + b"WEBP" + b"".join(kept)


def chunks(content: bytes, place: int, order: str, whole) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield kind, data and all bytes of each chunk: PNG (length, kind, data, checksum), WebP (kind, length, data)."""
    while place + 8 <= len(content):
        first, second = content[place : place + 4], content[place + 4 : place + 8]
        kind, length = (second, first) if order == "big" else (first, second)
        size = int.from_bytes(length, order)
        yield kind, content[place + 8 : place + 8 + size], content[place : place + whole(size)]
        place += whole(size)


def tiff_without_metadata(content: bytes) -> bytes:
    """Replace the first directory by a shorter one without metadata, at the same offset."""
    try:
        order, entries = directory(content)
        (start,) = struct.unpack_from(order + "L", content, 4)
        kept = [struct.pack(order + "HHL4s", *entry) for entry in entries if entry[0] in PIXEL_TAGS]
        shorter = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    except struct.error:
        return content
    return content[:start] + shorter + content[start + len(shorter) :]
