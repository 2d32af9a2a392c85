"""Whether two pictures are the same: digests of what a file holds, and of what is seen."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor

DIGEST = np.dtype(("<u8", (2,)))  # 16 bytes: of 100 million pictures, two share one by chance once in 10^22 times


def content_of(data: bytes, name: str) -> bytes:
    """16 bytes that are equal for equal picture files, wherever they are and whatever they are called.

    A file that is not a picture (empty, or the error page of a failed download) equals only itself: its name counts.
    """
    return _digest(data if is_picture(data) else data + b"\0" + name.encode(errors="surrogateescape"))


def seen_in(pixels: Tensor) -> bytes:
    """16 bytes that are equal for equal pixels, uint8 (3, S, S), and for those of the mirror image."""
    return min(_digest(image.numpy().tobytes()) for image in (pixels, pixels.flip(-1)))


def is_picture(data: bytes) -> bool:
    """Whether a file begins as those of a picture format that Pillow reads."""
    for accept in _accepts():
        try:
            if accept(data[:16]) is True:
                return True
        except (SyntaxError, IndexError, TypeError, struct.error):  # too short for this format
            continue
    return False


class SamePictures(Sequence):
    """Groups of indices whose digests are equal, in the order of the first of each group, rising within it.

    Args:
        digests: (n, 2) uint64.
    """

    def __init__(self, digests: np.ndarray) -> None:
        self._order = np.lexsort((digests[:, 1], digests[:, 0]))  # keeps the order of equal ones
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
        """The groups of more than one."""
        for group in np.flatnonzero(self._ends - self._starts > 1):
            yield self[group]


def as_digests(contents: Sequence[bytes]) -> np.ndarray:
    """Digests of 16 bytes → (n, 2) uint64."""
    return np.frombuffer(b"".join(contents), "<u8").reshape(-1, 2)


def without_repeats(captions: Sequence[str]) -> tuple[str, ...]:
    """The captions in their order, each once."""
    return tuple(dict.fromkeys(captions))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


@cache
def _accepts() -> list:
    """What Pillow asks the first 16 bytes of a file, for each format that can be told by them."""
    Image.init()
    return [accept for _, accept in Image.OPEN.values() if accept is not None]
