"""Makes single shards of an input. A shard depends only on the input, the settings and its number."""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Value
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lit_transfusion.data.digests import SamePictures, seen_in, without_repeats
from lit_transfusion.data.images import read_pixels
from lit_transfusion.data.shards import ShardWriter
from lit_transfusion.data.shards.layout import PREPARING, tar_name
from lit_transfusion.data.shards.writer import Picture, picture_file
from lit_transfusion.data.types import Skipped
from lit_transfusion.prepare.readers import Item, Reader
from lit_transfusion.whole_file import whole_file


class FinishedShard(NamedTuple):
    """The record of a finished shard, without its rows of the index."""

    name: str  # name of the tar
    num_examples: int
    bytes: int
    sha256: str
    skipped: list[Skipped]


@dataclass(eq=False)
class ShardMaker:
    """Makes the shard of a number.

    Items with equal files are one picture, with the name of the first and the captions of all. The pictures are
    shuffled as a whole, by a permutation chosen by `seed`, and divided into parts of `shard_size`. A tar gets its name
    when it is complete, and its record is written last. A shard without a record is made again.
    """

    reader: Reader  # the input
    contents: np.ndarray  # digests of the files of its items, (n, 2) uint64; see `prepare/digests.py`
    folder: Path  # of the shards
    image_size: int  # side of the square pictures, in pixels
    multiple_of: int | None  # of the sides of pictures that keep their aspect ratio (data/images.py)
    format: Literal["webp", "png", "jpg"]
    shard_size: int  # pictures of the input for one shard, with those that are skipped
    seed: int
    encoded: bool = False  # whether shards also contain the moments of the pictures

    def __post_init__(self) -> None:
        self.same = SamePictures(self.contents)
        self.order = np.random.default_rng(self.seed).permutation(len(self.same))
        self.done = Value("q", 0)  # pictures processed by all processes

    def __len__(self) -> int:
        return -(-len(self.order) // self.shard_size)

    def make(self, shard: int, pictures: Iterable[Picture | Skipped] | None = None) -> FinishedShard:
        """Make a shard, and return its record.

        Args:
            shard: Its number.
            pictures: Its pictures in the order of `part`; None reads them.

        Raises:
            InputError: It cannot be written.
        """
        if pictures is None:
            pictures = map(self.read, self.part(shard))
        skipped = []
        with whole_file(self.folder / tar_name(shard)) as file:
            writer = ShardWriter(file, shard, self.format, self.encoded)
            for number, picture in zip(self.part(shard), pictures, strict=True):
                if isinstance(picture, Skipped):
                    skipped.append(picture)
                else:
                    writer.add(number, picture)
                with self.done.get_lock():
                    self.done.value += 1
            writer.close()
        made = FinishedShard(tar_name(shard), len(writer.rows), writer.size, writer.sha256, skipped)
        rows = io.BytesIO()
        np.save(rows, writer.rows)
        with whole_file(self._record(shard, "npy")) as file:
            file.write(rows.getvalue())
        with whole_file(self._record(shard, "json")) as file:
            file.write(json.dumps(made._asdict()).encode())
        return made

    def part(self, shard: int) -> range:
        """The positions in the order that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.order)))

    def read(self, number: int) -> Picture | Skipped:
        """Read the picture at a position in the order; Skipped if it cannot be used."""
        same = self.same[self.order[number]]
        items = [self.reader[index] for index in same]
        item = items[0]
        if isinstance(item, Skipped):
            return item
        captions = [caption for each in items if isinstance(each, Item) for caption in each.captions]
        try:
            pixels = read_pixels(item.file, self.image_size, self.multiple_of)
        except ValueError as error:
            return Skipped(item.name, str(error))
        return Picture(
            key=item.key,
            name=item.name,
            file=picture_file(pixels, self.format),
            captions=without_repeats(captions),
            content=self.contents[same[0]].tobytes(),
            seen=seen_in(pixels),
        )

    def made(self, shard: int) -> FinishedShard | None:
        """The record of a shard; None if it is not finished or its tar has another size."""
        try:
            known = json.loads(self._record(shard, "json").read_text(encoding="utf-8"))
            if (self.folder / known["name"]).stat().st_size != known["bytes"]:
                return None
        except FileNotFoundError:
            return None
        return FinishedShard(**{**known, "skipped": [Skipped(*skipped) for skipped in known["skipped"]]})

    def rows(self, shard: int) -> np.ndarray:
        """The index rows of a finished shard."""
        return np.load(self._record(shard, "npy"))

    def _record(self, shard: int, suffix: str) -> Path:
        return self.folder / PREPARING / f"{shard:05d}.{suffix}"
