"""File names and record types of a folder of shards."""

import numpy as np

KIND = "lit_transfusion shards"
VERSION = 2  # of layout and hold-out rule; raised if older code cannot read it. 2: held out by content, not by name
INDEX, ROWS, SKIPPED, PREPARING = "index.json", "index.npy", "skipped.jsonl", ".preparing"
MOMENTS, PREVIEW = "moments.npy", "preview.png"
BLOCK = 512  # block size of tars, in bytes

ROW = np.dtype(
    [
        # Hash of the content (sources/base.py) in [0, 1), to hold out by; equal for pictures that look alike.
        ("fraction", "<f8"),
        ("offset", "<i8"),  # position of the picture's first byte in its tar
        ("shard", "<i4"),
        ("picture_bytes", "<i4"),
        ("json_bytes", "<i4"),
        ("checksum", "<u4"),  # crc32 from the first byte of the picture to the last of the json
    ]
)

MOMENTS_ROW = np.dtype(
    [
        ("moments_bytes", "<i4"),
        ("moments_checksum", "<u4"),  # crc32 from the first byte of the json to the last of the moments
    ]
)
CONTENT_ROW = np.dtype(  # digests of a picture, needed only while shards are made
    [
        ("content", "<u8", (2,)),  # digest of its file (data/digests.py)
        ("seen", "<u8", (2,)),  # digest of its pixels
    ]
)
NOTED_ROW = np.dtype(ROW.descr + CONTENT_ROW.descr)
NOTED_ENCODED_ROW = np.dtype(NOTED_ROW.descr + MOMENTS_ROW.descr)

# Arguments of Pillow. Size and time to write and read a photograph of 256 x 256 (one core): lossless WebP 95 kB, 5 ms,
# 1.7 ms; PNG 118 kB, 6 ms, 2.4 ms; JPEG, which changes the pixels, 39 kB, 0.4 ms, 0.9 ms.
FORMATS = {
    "webp": {"format": "WEBP", "lossless": True, "method": 0},  # method 4: 13 % smaller, 17 times slower
    "png": {"format": "PNG", "compress_level": 1},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


def padded(size: int) -> int:
    """Bytes of a tar member of this size, padded to whole blocks, without its header."""
    return -(-size // BLOCK) * BLOCK


def span(row: np.void) -> int:
    """Number of bytes from the first of the picture to the last of the json: the size of one read."""
    return padded(int(row["picture_bytes"])) + BLOCK + int(row["json_bytes"])


def moments_place(row: np.void, moments_row: np.void) -> tuple[int, int]:
    """Offset and size of one read, from the first byte of the json to the last of the moments."""
    start = int(row["offset"]) + padded(int(row["picture_bytes"])) + BLOCK
    return start, padded(int(row["json_bytes"])) + BLOCK + int(moments_row["moments_bytes"])


def tar_name(shard: int) -> str:
    return f"{shard:05d}.tar"
