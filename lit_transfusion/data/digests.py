"""Digests that tell whether two pictures are the same: by the content of the file, and by the pixels."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor


def content_of(data: bytes, name: str) -> bytes:
    """Digest of a file, 16 bytes. Picture files with equal content have equal digests, whatever their names are.

    A file that is not a picture (empty, or the error page of a failed download) is equal only to itself: its digest
    includes its name.
    """
    return _digest(data if is_picture(data) else data + b"\0" + name.encode(errors="surrogateescape"))


def seen_in(pixels: Tensor) -> bytes:
    """Digest of pixels, uint8 (3, height, width), 16 bytes. A picture and its mirror image have the same digest."""
    return min(_digest(image.numpy().tobytes()) for image in (pixels, pixels.flip(-1)))


def is_picture(data: bytes) -> bool:
    """Whether a file starts like a picture format that Pillow reads."""
    for accept in _accepts():
        try:
            if accept(data[:16]) is True:
                return True
        except (SyntaxError, IndexError, TypeError, struct.error):  # too short for this format
            continue
    return False


class SamePictures(Sequence):
    """Groups of indices with equal digests. Groups are ordered by their first index; indices rise within a group.

    Args:
        digests: (n, 2) uint64.
    """

    def __init__(self, digests: np.ndarray) -> None:
        self._order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal digests keep their order
        ranked = digests[self._order]
        begins = np.ones(len(ranked), bool)
        begins[1:] = (ranked[1:] != ranked[:-1]).any(1)
        starts = np.flatnonzero(begins)
        ends = np.append(starts[1:], len(ranked))
        by_first = np.argsort(self._order[starts])
        self._starts, self._ends = starts[by_first], ends[by_first]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, group: int) -> list[int]:
        return self._order[self._starts[group] : self._ends[group]].tolist()

    def copies(self) -> Iterator[list[int]]:
        """Yield the groups with more than one index."""
        for group in np.flatnonzero(self._ends - self._starts > 1):
            yield self[group]


def as_digests(contents: Sequence[bytes]) -> np.ndarray:
    """Convert digests of 16 bytes to an array (n, 2) uint64."""
    return np.frombuffer(b"".join(contents), "<u8").reshape(-1, 2)


def without_repeats(captions: Sequence[str]) -> tuple[str, ...]:
    """The captions in their order, without repeats."""
    return tuple(dict.fromkeys(captions))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


@cache
def _accepts() -> list:
    """Pillow's tests of the first 16 bytes of a file, one for each format that has such a test."""
    Image.init()
    return [accept for _, accept in Image.OPEN.values() if accept is not None]
