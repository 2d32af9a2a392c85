"""Writes one tar and the position of each picture in it."""

import hashlib
import io
import json
import tarfile
import zlib
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from lit_transfusion.data.digests import as_digests
from lit_transfusion.data.shards.layout import BLOCK, FORMATS, NOTED_ENCODED_ROW, NOTED_ROW, padded
from lit_transfusion.data.sources.base import fraction


class Picture(NamedTuple):
    """A picture to write into a shard."""

    key: str
    name: str  # such that the user can find it
    file: bytes  # content of the picture file in the shard
    captions: tuple[str, ...]
    content: bytes  # digests of the original file and of the pixels (data/digests.py)
    seen: bytes
    moments: Tensor | None = None  # (2, K, h, w) float16, of the picture and of its mirror image


class ShardWriter:
    """Writes examples to a tar. The same examples always give the same bytes.

    Args:
        file: The empty tar, open for writing.
        shard: Number of the shard.
        format: Format of the pictures.
        encoded: Whether each picture has moments.
    """

    def __init__(
        self, file: BinaryIO, shard: int, format: Literal["webp", "png", "jpg"] = "webp", encoded: bool = False
    ) -> None:
        self.file = file
        self.shard = shard
        self.format = format
        self.encoded = encoded
        self.size = 0  # bytes written
        self._digest = hashlib.sha256()
        self._rows: list[tuple] = []

    def add(self, number: int, picture: Picture) -> None:
        """Add a picture. `number` becomes the name of its members."""
        text = json.dumps({"key": picture.key, "captions": picture.captions}).encode()  # ASCII for any key
        members = member(f"{number:09d}.{self.format}", picture.file) + member(f"{number:09d}.json", text)
        start_of_text = BLOCK + padded(len(picture.file)) + BLOCK
        checksum = zlib.crc32(members[BLOCK : start_of_text + len(text)])
        row = fraction(picture.content.hex(), 0), self.size + BLOCK, self.shard, len(picture.file), len(text), checksum
        row += tuple(as_digests([picture.content, picture.seen]))
        if picture.moments is not None:
            array = array_file(picture.moments)
            start_of_array = len(members) + BLOCK
            members += member(f"{number:09d}.moments.npy", array)
            row += len(array), zlib.crc32(members[start_of_text : start_of_array + len(array)])
        self._rows.append(row)
        self._write(members)

    def close(self) -> None:
        """Write the end of the tar."""
        end = self.size + 2 * BLOCK
        self._write(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def rows(self) -> np.ndarray:
        """Positions of the examples in the order of `add`: (n,) of `NOTED_ROW` or `NOTED_ENCODED_ROW`."""
        return np.array(self._rows, dtype=NOTED_ENCODED_ROW if self.encoded else NOTED_ROW)

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self._digest.update(content)
        self.size += len(content)


def member(name: str, content: bytes) -> bytes:
    """A tar member: header, content and padding, without time and owner, so that equal content gives equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(padded(len(content)) - len(content))


def array_file(array: Tensor) -> bytes:
    """Encode an array as the content of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array.numpy())
    return buffer.getvalue()


def picture_file(pixels: Tensor, format: str) -> bytes:
    """Encode uint8 (3, height, width) as the content of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, **FORMATS[format])
    return buffer.getvalue()
