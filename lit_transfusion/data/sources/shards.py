"""A source of prepared pictures, which are fast to read."""

import copy
from bisect import bisect_left, bisect_right
from typing import Literal

from lit_transfusion.data.images import to_unit_range
from lit_transfusion.data.shards.folder import EncodedSample, Sample, ShardFolder
from lit_transfusion.data.sources.base import Encoding, Source, digest
from lit_transfusion.data.types import Example, Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Moments

MOST_READ = 20_000  # largest number of examples whose captions train a tokenizer


class Shards(Source):
    """Captioned pictures in shards made by `python -m lit_transfusion prepare`.

    The pictures are already cropped and resized. They are equal to those that `ImageCaptions` reads from the same
    folder, bit by bit, and the same ones are held out. The exception is copies that were saved again or mirrored: only
    `prepare` finds them, and puts them into the same part. One read of a tar gives an example. Memory does not grow
    with the number of examples. If the pictures are encoded, training reads their moments and does not run the encoder.

    Args:
        path: A folder made by `prepare`.
        image_size: Side of the square pictures, in pixels (set by the data module's `image_size`). It must be the size
            used by `prepare`; null takes that size.
        val_fraction: Share of the pictures that is held out, in [0, 1); at least one picture unless it is 0. The choice
            depends only on the content of the original files.
        latents: Whether to yield moments instead of pictures, if `prepare` had a codec. It must be the codec of the
            run.
    """

    def __init__(
        self, path: str = "", image_size: int | None = None, val_fraction: float = 0.05, latents: bool = True
    ) -> None:
        self.path = path
        self.latents = latents
        if not path:
            raise InputError("Shards has no path; set path to a folder made by `prepare`")
        self._shards = ShardFolder(path)
        super().__init__(self._shards.index["image_size"] if image_size is None else image_size, val_fraction)
        self._start, self._stop = 0, len(self._shards)
        if latents and (codec := self._shards.codec):
            arguments = " ".join(f"{name}={value}" for name, value in codec["init_args"].items())
            named = f"{codec['class_path']} ({arguments})" if arguments else codec["class_path"]
            self.encoding = Encoding(codec["identity"], named, path)

    @property
    def image_size(self) -> int:
        return self._shards.index["image_size"]

    @image_size.setter
    def image_size(self, image_size: int) -> None:
        """Check the size. A mix also sets it, after its sources are made."""
        prepared = self._shards.index["image_size"]
        if prepared != image_size:
            raise InputError(
                f"{self.path} contains pictures of {prepared} x {prepared}, but data.image_size is {image_size}; set "
                f"data.image_size to {prepared}, or prepare the pictures again with --image_size {image_size}"
            )

    def set_multiple_of(self, multiple_of: int | None) -> None:
        """Check that the prepared pictures are such pictures; squares always are."""
        prepared = self._shards.index.get("multiple_of")
        if prepared is not None and multiple_of is None:
            raise InputError(
                f"{self.path} contains pictures of several sizes, but data.keep_ratio is false; set it to true"
            )
        if prepared is not None and prepared % multiple_of:
            raise InputError(
                f"{self.path} contains pictures with sides that are multiples of {prepared}, but patches have "
                f"{multiple_of} pixels a side; prepare the pictures again with --multiple_of {multiple_of}"
            )

    def split(self, name: Literal["train", "val"]) -> "Shards":
        size = len(self._shards)
        # Rows are sorted by the same fraction that `hold_out` uses, so the held-out rows are first.
        # Pictures that look the same have the same fraction, and no limit below separates them.
        fractions = self._shards.rows["fraction"]  # bisection reads only a few of them
        held_out = bisect_left(fractions, self.val_fraction)
        if self.val_fraction > 0 and held_out == 0:
            held_out = bisect_right(fractions, fractions[0])
        if held_out == size:
            held_out = bisect_left(fractions, fractions[-1])
        part = copy.copy(self)
        part._start, part._stop = (0, held_out) if name == "val" else (held_out, size)
        return part

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Example | Skipped:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        row = self._start + index
        sample = self._shards.encoded(row) if self.encoding else self._shards[row]
        match sample:
            case EncodedSample():
                return Example(Moments(sample.image), sample.captions, Moments(sample.mirror_image))
            case Sample():
                return Example(to_unit_range(sample.pixels), sample.captions)
        return sample

    @property
    def pictures(self) -> "Shards":
        pixels = copy.copy(self)
        pixels.encoding = None
        return pixels

    def fingerprint(self) -> str:
        return digest(shard["sha256"] for shard in self._shards.index["shards"])

    def captions(self) -> list[str]:
        """Captions of all examples, or of 20,000 that are evenly spread."""
        number = min(len(self), MOST_READ)
        chosen = (self._shards[self._start + i * len(self) // number] for i in range(number))
        return [caption for sample in chosen if not isinstance(sample, Skipped) for caption in sample.captions]
