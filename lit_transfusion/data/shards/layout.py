"""Names and types of what is in a folder of shards."""

import numpy as np

KIND = "lit_transfusion shards"
VERSION = 2  # of the layout and of what is held out; raised when older code could not read it. 2: by content, not name
INDEX, ROWS, SKIPPED, PREPARING = "index.json", "index.npy", "skipped.jsonl", ".preparing"
MOMENTS, PREVIEW = "moments.npy", "preview.png"
BLOCK = 512  # bytes that tars are made of

ROW = np.dtype(
    [
        (
            "fraction",
            "<f8",
        ),  # of the content (sources/base.py), in [0, 1): what is held out; equal for pictures that look alike
        ("offset", "<i8"),  # of the picture's first byte in its tar
        ("shard", "<i4"),
        ("picture_bytes", "<i4"),
        ("json_bytes", "<i4"),
        ("checksum", "<u4"),  # crc32 from the picture's first byte to the json's last
    ]
)

MOMENTS_ROW = np.dtype(
    [
        ("moments_bytes", "<i4"),
        ("moments_checksum", "<u4"),  # crc32 from the json's first byte to the moments' last
    ]
)
CONTENT_ROW = np.dtype(  # what is known of a picture while shards are made
    [
        ("content", "<u8", (2,)),  # of its file (data/digests.py)
        ("seen", "<u8", (2,)),  # of its pixels
    ]
)
NOTED_ROW = np.dtype(ROW.descr + CONTENT_ROW.descr)
NOTED_ENCODED_ROW = np.dtype(NOTED_ROW.descr + MOMENTS_ROW.descr)

# What Pillow is told. Of 256 x 256 photographs, WebP without loss takes 95 kB, 5 ms to write and 1.7 ms to read; PNG
# 118 kB, 6 ms and 2.4 ms; JPEG, which changes the pixels, 39 kB, 0.4 ms and 0.9 ms (one core).
FORMATS = {
    "webp": {"format": "WEBP", "lossless": True, "method": 0},  # method 4: 13 % smaller for 17 times the time
    "png": {"format": "PNG", "compress_level": 1},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


def padded(size: int) -> int:
    """Bytes that a member of this size takes in a tar, without its header."""
    return -(-size // BLOCK) * BLOCK


def span(row: np.void) -> int:
    """Bytes from the picture's first to the json's last: what one read has to take."""
    return padded(int(row["picture_bytes"])) + BLOCK + int(row["json_bytes"])


def moments_place(row: np.void, moments_row: np.void) -> tuple[int, int]:
    """Where the json begins in its tar, and the bytes from there to the moments' last: what one read has to take."""
    start = int(row["offset"]) + padded(int(row["picture_bytes"])) + BLOCK
    return start, padded(int(row["json_bytes"])) + BLOCK + int(moments_row["moments_bytes"])


def tar_name(shard: int) -> str:
    return f"{shard:05d}.tar"
