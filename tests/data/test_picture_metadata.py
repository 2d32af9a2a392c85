"""A picture with any EXIF, profiles and texts, also broken ones, is read, and upright."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lit_transfusion.data.images import read_pixels
from lit_transfusion.data.picture_metadata import without_metadata

CORNERS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
TURNED = {  # orientation → corners of a picture stored like the first, clockwise from the upper left
    1: ["red", "green", "blue", "white"],
    2: ["green", "red", "white", "blue"],
    3: ["blue", "white", "red", "green"],
    4: ["white", "blue", "green", "red"],
    5: ["red", "white", "blue", "green"],
    6: ["white", "red", "green", "blue"],
    7: ["blue", "green", "red", "white"],
    8: ["green", "blue", "white", "red"],
}
FORMATS = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}
TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def quarters(side=16):
    image = Image.new("RGB", (side, side))
    half = side // 2
    for name, place in zip(TURNED[1], ((0, 0), (half, 0), (half, half), (0, half)), strict=True):
        image.paste(CORNERS[name], (*place, place[0] + half, place[1] + half))
    return image


def corners(content):
    """The colour names of the corners, clockwise from the upper left."""
    pixels = read_pixels(io.BytesIO(content), 16)
    places = ((3, 3), (3, 12), (12, 12), (12, 3))
    colours = [pixels[:, row, column].float().numpy() for row, column in places]
    return [min(CORNERS, key=lambda name: np.abs(colour - CORNERS[name]).sum()) for colour in colours]


def exif_of(*entries, order="<"):
    """EXIF of (tag, type, count, value as 4 bytes), followed by a few bytes that a value may point to."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LH", 8, len(entries))
    return start + b"".join(struct.pack(order + "HHL4s", *entry) for entry in entries) + bytes(4) + b"\1\2\3\4" * 8


def oriented(value, *others, order="<"):
    entry = (0x0112, 3, 1, struct.pack(order + "HH", value, 0))
    return exif_of(*sorted([entry, *others], key=lambda entry: entry[0]), order=order)


def saved(exif, format, image=None, **options):
    file = io.BytesIO()
    exif = b"Exif\0\0" + exif if format == "JPEG" else exif
    (image or quarters()).save(file, format, exif=exif, **FORMATS[format], **options)
    return file.getvalue()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", TURNED)
@pytest.mark.parametrize("order", "<>")
def test_all_orientations(format, value, order):
    assert corners(saved(oriented(value, order=order), format)) == TURNED[value]


@pytest.mark.parametrize("format", FORMATS)
def test_tag_of_any_type_hides_neither_picture_nor_orientation(format):
    """Tags before and after the orientation, of known and unknown types, with values inside, elsewhere or missing."""
    tags = [0x0100, 0x010E, 0x010F, 0x011A, 0x0128, 0x0131, 0x0132, 0x02BC, 0x8769, 0x8825, 0x9999]
    values = [(1, 26), (0, 0), (4, 10), (1, 10**6), (2**31, 8)]
    wrong = []
    for tag, kind, (count, value) in itertools.product(tags, [0, *TYPES, 14, 255], values):
        order = "<>"[(tag + kind) % 2]
        content = saved(oriented(6, (tag, kind, count, struct.pack(order + "L", value)), order=order), format)
        if corners(content) != TURNED[6]:
            wrong.append((hex(tag), kind, count, value))
    assert not wrong


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"nonsense" * 9,
        exif_of()[:9],
        oriented(0),
        oriented(9),
        oriented(65535),
        exif_of((0x0112, 2, 4, b"six\0")),
        exif_of((0x0112, 5, 1, struct.pack("<L", 26))),
        exif_of((0x0112, 3, 0, bytes(4)))[:-40],
        b"II*\0" + struct.pack("<L", 2**31),
        exif_of(*[(0x0112, 255, 1, bytes(4))] * 500),
    ],
)
def test_exif_without_an_orientation_turns_nothing(format, exif):
    assert corners(saved(exif, format)) == TURNED[1]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
def test_orientation_of_any_whole_number(format, kind):
    letter = {1: "B3x", 3: "H2x", 4: "L", 6: "b3x", 8: "h2x", 9: "l"}[kind]
    assert corners(saved(exif_of((0x0112, kind, 1, struct.pack("<" + letter, 8))), format)) == TURNED[8]


@pytest.mark.parametrize("format", FORMATS)
def test_random_bytes_as_exif(format):
    draws = np.random.default_rng(0)
    for _ in range(60):
        exif = bytearray(oriented(1, (0x8769, 4, 1, struct.pack("<L", 26)), (0x0131, 2, 9, struct.pack("<L", 30))))
        places = set(range(10, len(exif))) - set(range(10, 22))  # all but the orientation
        for place in draws.choice(sorted(places), 6):
            exif[place] = draws.integers(256)
        assert corners(saved(bytes(exif), format)) == TURNED[1]
        assert read_pixels(io.BytesIO(saved(draws.bytes(80), format)), 16).shape == (3, 16, 16)


def test_orientation_in_xmp():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    file = io.BytesIO()
    quarters().save(file, "WEBP", lossless=True, xmp=xmp)
    assert corners(file.getvalue()) == TURNED[6]


# Other metadata


def jpeg_with(*segments):
    content = saved(oriented(6), "JPEG")
    return (
        content[:2]
        + b"".join(bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data for marker, data in segments)
        + content[2:]
    )


@pytest.mark.parametrize(
    "segment",
    [
        (0xE2, b"ICC_PROFILE\0\1\1nonsense"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\7\3x"),
        (0xE2, b"MPF\0II*\0\xff\xff\xff\x7f"),
        (0xE2, b"MPF\0" + exif_of((0xB001, 2, 1, b"x\0\0\0"))),
        (0xE2, b"MPF\0" + exif_of((0xB001, 4, 1, b"\2\0\0\0"), (0xB002, 7, 3, b"abc\0"))),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10short"),
        (0xE1, b'http://ns.adobe.com/xap/1.0/\0<tiff:Orientation="x\xff'),
        (0xE0, b"JFXX"),
        (0xE0, b"JFIF\0"),
        (0xE0, b"JFIF\0\1\1\1\0\0\0\0"),
        (0xEC, b""),
        (0xFE, b"\xff\xfe comment"),
    ],
)
def test_broken_segments_of_a_jpeg(segment):
    assert corners(jpeg_with(segment)) == TURNED[6]


def png_with(kind, data, checksum=None):
    content = saved(oriented(6), "PNG")
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    chunk = len(data).to_bytes(4, "big") + kind + data + checksum.to_bytes(4, "big")
    return content[:33] + chunk + content[33:]  # after IHDR


@pytest.mark.parametrize(
    ("kind", "data", "checksum"),
    [
        (b"iCCP", b"profile\0\0nonsense", None),
        (b"iCCP", b"profile", None),
        (b"iCCP", b"profile\0\7" + zlib.compress(b"x"), None),
        (b"zTXt", b"comment\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)), None),
        (b"zTXt", b"comment\0\1nonsense", None),
        (b"iTXt", b"comment\0\1\0\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)), None),
        (b"iTXt", b"\xff", None),
        (b"tEXt", b"comment\0of another program", 12345),
        (b"tEXt", b"\xff" * 9, None),
        (b"gAMA", b"\0", None),
        (b"cHRM", b"\0\0\0", None),
        (b"pHYs", b"\0", None),
        (b"sRGB", b"", None),
        (b"tIME", b"\0", 1),
        (b"acTL", b"\0\0", None),
        (b"teSt", b"of nobody", 7),
    ],
)
def test_broken_chunks_of_a_png(kind, data, checksum):
    assert corners(png_with(kind, data, checksum)) == TURNED[6]


@pytest.mark.parametrize("kind", [b"ICCP", b"XMP ", b"teSt"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe\xff"])
def test_broken_chunks_of_a_webp(kind, data):
    content = saved(oriented(6), "WEBP")
    chunk = kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
    body = content[12:] + chunk
    assert corners(b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body) == TURNED[6]


@pytest.mark.parametrize("kind", [0, *TYPES, 255])
@pytest.mark.parametrize("value", [1, 6])
def test_tags_of_a_tiff(kind, value):
    file = io.BytesIO()
    quarters().save(file, "TIFF", tiffinfo={0x0112: value, 0x0131: "software of somebody"})
    content = bytearray(file.getvalue())
    place = content.index(struct.pack("<HH", 0x0131, 2))
    content[place : place + 4] = struct.pack("<HH", 0x0131, kind)
    assert corners(bytes(content)) == TURNED[value]


@pytest.mark.parametrize("format", [*FORMATS, "TIFF", "GIF", "BMP"])
def test_file_without_metadata_has_the_same_pixels(format):
    file = io.BytesIO()
    options = FORMATS.get(format, {}) | ({"icc_profile": b"profile" * 20} if format != "BMP" else {})
    quarters().save(file, format, exif=oriented(6), **options)
    rest = without_metadata(file.getvalue())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(rest))), np.asarray(Image.open(file)))
    assert "icc_profile" not in Image.open(io.BytesIO(rest)).info


@pytest.mark.parametrize("format", [*FORMATS, "TIFF"])
def test_truncated_file_is_an_error_or_a_picture(format):
    file = io.BytesIO()
    quarters().save(file, format, exif=oriented(6), **FORMATS.get(format, {}))
    for end in range(0, len(file.getvalue()), 3):
        try:
            assert read_pixels(io.BytesIO(file.getvalue()[:end]), 16).shape == (3, 16, 16)
        except ValueError as error:
            assert str(error).startswith("cannot be read: ")
