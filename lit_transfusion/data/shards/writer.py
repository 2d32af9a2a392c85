"""Writes one tar, and notes where each picture lies in it."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from lit_transfusion.data.digests import as_digests
from lit_transfusion.data.shards.layout import BLOCK, FORMATS, NOTED_ENCODED_ROW, NOTED_ROW, padded
from lit_transfusion.data.sources.base import fraction


class ShardWriter:
    """Puts examples into a tar. The same examples give the same bytes, whoever writes them, and when.

    Args:
        file: The tar, open for writing, empty.
        shard: Its number.
        format: Of the pictures.
        encoded: Whether each picture comes with its moments.
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

    def add(
        self,
        number: int,
        key: str,
        picture: bytes,
        captions: Sequence[str],
        content: bytes,
        seen: bytes,
        moments: Tensor | None = None,
    ) -> None:
        """Add the content of a picture file with its captions, and moments float16 (2, K, h, w) if they are kept.

        `number` becomes the name of its members. `content` and `seen` tell what it is the same as (data/digests.py).
        """
        text = json.dumps({"key": key, "captions": list(captions)}).encode()  # in ASCII, whatever the key is made of
        members = member(f"{number:09d}.{self.format}", picture) + member(f"{number:09d}.json", text)
        start_of_text = BLOCK + padded(len(picture)) + BLOCK
        checksum = zlib.crc32(members[BLOCK : start_of_text + len(text)])
        row = fraction(content.hex(), 0), self.size + BLOCK, self.shard, len(picture), len(text), checksum
        row += tuple(as_digests([content, seen]))
        if moments is not None:
            array = array_file(moments)
            start_of_array = len(members) + BLOCK
            members += member(f"{number:09d}.moments.npy", array)
            row += len(array), zlib.crc32(members[start_of_text : start_of_array + len(array)])
        self._rows.append(row)
        self._write(members)

    def close(self) -> None:
        """Write what ends a tar."""
        end = self.size + 2 * BLOCK
        self._write(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def rows(self) -> np.ndarray:
        """Where the examples lie, in the order in which they were added: (n,) of `NOTED_ROW` or `NOTED_ENCODED_ROW`."""
        return np.array(self._rows, dtype=NOTED_ENCODED_ROW if self.encoded else NOTED_ROW)

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self._digest.update(content)
        self.size += len(content)


def member(name: str, content: bytes) -> bytes:
    """Header, content and padding. Neither time nor owner is said, which would differ from one writing to the next."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(padded(len(content)) - len(content))


def array_file(array: Tensor) -> bytes:
    """The content of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array.numpy())
    return buffer.getvalue()


def picture_file(pixels: Tensor, format: str) -> bytes:
    """uint8 (3, S, S) → the content of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, **FORMATS[format])
    return buffer.getvalue()
