"""What a reader has to offer."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lit_transfusion.data.sources.metadata import clean
from lit_transfusion.data.types import Skipped
from lit_transfusion.text_reader import NOT_UTF8, is_encodable


class Item(NamedTuple):
    """A picture with captions as it was found."""

    key: str  # no two items of an input share one, and it is the same whenever they are listed
    name: str  # as its owner would look for it
    file: str | Path | BinaryIO  # what `images.read_pixels` takes
    captions: tuple[str, ...]  # at least one, none empty


class Reader:
    """Pictures with captions by index, listed when it is made and read when they are asked for, in any process."""

    def __init__(self) -> None:
        self.left_out: list[Skipped] = []  # what was seen to be of no use while listing

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Item | Skipped:
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A name for what was listed, which is another if the input has changed."""
        raise NotImplementedError


def usable(texts: Iterable[object]) -> tuple[str, ...]:
    """The captions among what was found for one.

    Raises:
        ValueError: There is none. The message is a short reason that is the same for all of one kind.
    """
    texts = list(texts)
    if not all(isinstance(text, str | None) for text in texts):
        raise ValueError("with a caption that is no text")
    captions = tuple(clean(texts))
    if not captions:
        raise ValueError("without a caption")
    if not all(map(is_encodable, captions)):  # half of a surrogate pair, which JSON can write
        raise ValueError(f"with a caption that is {NOT_UTF8}")
    return captions
