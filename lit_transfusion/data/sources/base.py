"""The base class of all sources of examples."""

import hashlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch.utils.data import Dataset

from lit_transfusion.data.types import EditExample, Example, Skipped, TextExample
from lit_transfusion.errors import InputError
from lit_transfusion.wording import counted


class Encoding(NamedTuple):
    """The codec whose moments a source yields in place of pictures."""

    identity: str  # of the codec (latents/base.py)
    codec: str  # its class and arguments, for messages
    path: str  # folder of the moments


class Stream(NamedTuple):
    """A range of examples with its own epochs in training."""

    name: str  # its name in a mix
    weight: float  # its share of all trained positions
    indices: range  # its examples in the source
    later: tuple[tuple[int, float], ...] = ()  # (batches, weight from then on), rising

    @property
    def examples(self) -> str:
        return counted(len(self.indices), "example") + (f" of {self.name}" if self.name else "")

    def weight_after(self, batches: int) -> float:
        """The weight after this number of batches."""
        return next((weight for since, weight in reversed(self.later) if since <= batches), self.weight)


class Source(Dataset):
    """Captioned pictures, edits or texts, by index.

    A source is a map-style data set and a pure function of its arguments and the index: the same index gives the same
    example in any process. So a run can resume, and does not depend on the number of workers.

    Args:
        image_size: Side of the square pictures, in pixels (set by the data module's `image_size`). With
            `multiple_of`, the area of a picture is at most that of the square.
        val_fraction: Share that is held out, in [0, 1), for sources that have this option.
    """

    multiple_of: int | None = None  # of the sides of pictures that keep their aspect ratio; None for squares
    images_per_example: int = 1  # 2 for edits, 0 for texts; for a mix, the maximum
    has_texts: bool = False  # whether some examples are texts, in which lines and spaces matter
    encoding: Encoding | None = None  # None: pictures are pixels; for a mix, the encoding of the first source

    def __init__(self, image_size: int = 64, val_fraction: float = 0.0) -> None:
        self.image_size = image_size
        self.val_fraction = val_fraction
        if not 0 <= val_fraction < 1:
            name = type(self).__name__
            raise InputError(f"{name}: val_fraction is {val_fraction}; set it to at least 0 and less than 1")

    def set_multiple_of(self, multiple_of: int | None) -> None:
        """Make pictures keep their aspect ratio, with sides that are multiples of this many pixels; None for squares.

        Raises:
            InputError: The source cannot yield such pictures.
        """
        self.multiple_of = multiple_of

    def split(self, name: Literal["train", "val"]) -> "Source":
        """The part for training, or the held-out part. They share no picture."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example | EditExample | TextExample | Skipped:
        """The example at `index`, or Skipped with the reason why it cannot be used.

        Images are pixels (3, height, width) in [-1, 1], or moments if `encoding` is set. Both sides are `image_size`,
        unless `multiple_of` is set: then `read_image(file, self.image_size, self.multiple_of)` chooses them. A source
        of square pictures may ignore `multiple_of`.
        """
        raise NotImplementedError

    def captions(self) -> list[str]:
        """Captions, instructions or texts to train a tokenizer: all, or a fair sample of about ten thousand."""
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        """A string that changes when the examples change, as far as this is visible without reading them.

        None for a source that depends only on its arguments.
        """
        return None

    def streams(self) -> list[Stream]:
        """The streams of training: one for the whole source, or for a mix one for each source."""
        return [Stream("", 1.0, range(len(self)))]

    @property
    def parts(self) -> dict[str, "Source"]:
        """The sources of a mix by name; for any other source, itself with an empty name."""
        return {"": self}

    @property
    def pictures(self) -> "Source":
        """The source of pictures to show and to predict, in pixels: itself, or the first source of a mix."""
        return self


def hold_out(names: Iterable[str], share: float, seed: int) -> set[str]:
    """Choose about `share` of the names. The choice of a name does not depend on the other names.

    If the share is above 0 and there are at least two names, the result is neither empty nor complete.
    """
    ranked = sorted(set(names), key=lambda name: fraction(name, seed))
    count = sum(fraction(name, seed) < share for name in ranked)
    if share > 0:
        count = min(max(count, 1), len(ranked) - 1)
    return set(ranked[:count])


def fraction(name: str, seed: int) -> float:
    """Hash a name to a number in [0, 1), evenly distributed over names. It decides which names are held out."""
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def digest(parts: Iterable[object]) -> str:
    """Hash several values into one string."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(repr(part).encode(errors="surrogateescape") + b"\n")
    return hashed.hexdigest()
