"""The base class of all readers."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lit_transfusion.data.sources.metadata import clean
from lit_transfusion.data.types import Skipped
from lit_transfusion.text_reader import NOT_UTF8, is_encodable


class Item(NamedTuple):
    """A captioned picture of an input."""

    key: str  # unique within an input, and the same each time it is listed
    name: str  # such that the user can find it
    file: str | Path | BinaryIO  # input of `images.read_pixels`
    captions: tuple[str, ...]  # at least one, none empty


class Reader:
    """Captioned pictures by index. The constructor lists them; any process can read them."""

    def __init__(self) -> None:
        self.left_out: list[Skipped] = []  # pictures found to be unusable while listing

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Item | Skipped:
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash of the list, which changes if the input changes."""
        raise NotImplementedError


def usable_captions(texts: Iterable[object]) -> tuple[str, ...]:
    """Clean the captions of a picture.

    Raises:
        ValueError: There is no caption, or one is not text. The message is a short reason, the same for all pictures of
            one kind.
    """
    texts = list(texts)
    if not all(isinstance(text, str | None) for text in texts):
        raise ValueError("with a caption that is not text")
    captions = tuple(clean(texts))
    if not captions:
        raise ValueError("without a caption")
    if not all(map(is_encodable, captions)):  # half of a surrogate pair, which JSON can contain
        raise ValueError(f"with a caption that is {NOT_UTF8}")
    return captions
