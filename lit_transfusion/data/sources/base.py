"""What a source of examples has to offer."""

import hashlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch.utils.data import Dataset

from lit_transfusion.data.types import EditExample, Example, Skipped, TextExample
from lit_transfusion.wording import counted


class Encoding(NamedTuple):
    """Whose moments a source yields in place of pictures."""

    identity: str  # of the codec (latents/base.py)
    codec: str  # its class and arguments, in words
    path: str  # where they are kept


class Stream(NamedTuple):
    """Examples that training goes through epoch by epoch, on their own."""

    name: str  # in a mix
    weight: float  # its share of all that is trained on, by positions
    indices: range  # in the source
    later: tuple[tuple[int, float], ...] = ()  # (batches, the weight that it has after so many), rising

    @property
    def examples(self) -> str:
        return counted(len(self.indices), "example") + (f" of {self.name}" if self.name else "")

    def weight_after(self, batches: int) -> float:
        """The weight by which it is served once so many batches have been handed out."""
        return next((weight for since, weight in reversed(self.later) if since <= batches), self.weight)


class Source(Dataset):
    """Pictures with captions, edits of pictures, or texts, by index.

    A source is a plain map-style data set and a pure function of its arguments and the index: the same index gives the
    same example in any process, so that a run can be resumed and does not depend on the number of workers.

    Args:
        image_size: Side of the square pictures it yields, in pixels (set by the data module's `image_size`).
    """

    images_per_example: int = 1  # 2 in a source of edits, 0 in one of texts; of a mix, the most that there are
    has_texts: bool = False  # whether texts are among the examples, of which each line and space counts
    encoding: Encoding | None = None  # None: its pictures are pixels; of a mix, that of the first source

    def __init__(self, image_size: int = 64) -> None:
        self.image_size = image_size

    def split(self, name: Literal["train", "val"]) -> "Source":
        """The part of this source that is trained on, or the part that is held out. They share no picture."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example | EditExample | TextExample | Skipped:
        """The example at `index`, its images (3, image_size, image_size) in [-1, 1] or as `encoding` says; or why there
        is none."""
        raise NotImplementedError

    def captions(self) -> list[str]:
        """Captions, instructions or texts to train a tokenizer from: all, or a fair sample of some ten thousand."""
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        """A name for the examples, which is another if they have changed, as far as that is seen without reading them;
        None of a source that depends on nothing but its arguments."""
        return None

    def streams(self) -> list[Stream]:
        """What training goes through side by side: the whole, or of a mix each source."""
        return [Stream("", 1.0, range(len(self)))]

    @property
    def parts(self) -> dict[str, "Source"]:
        """The sources of a mix, by name; of any other source itself, without a name."""
        return {"": self}

    @property
    def pictures(self) -> "Source":
        """What is drawn from and shown, in pixels: the whole, or of a mix the first source that has pictures."""
        return self


def hold_out(names: Iterable[str], share: float, seed: int) -> set[str]:
    """About this share of the names: always the same ones, whatever else there is. Of two names or more, neither
    none nor all if the share is above 0."""
    ranked = sorted(set(names), key=lambda name: fraction(name, seed))
    count = sum(fraction(name, seed) < share for name in ranked)
    if share > 0:
        count = min(max(count, 1), len(ranked) - 1)
    return set(ranked[:count])


def fraction(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, evenly spread over names: what to hold out."""
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def digest(parts: Iterable[object]) -> str:
    """One name for many things."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(repr(part).encode(errors="surrogateescape") + b"\n")
    return hashed.hexdigest()
