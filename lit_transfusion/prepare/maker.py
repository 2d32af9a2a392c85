"""Makes one shard of an input: all that depends on nothing but the input, the settings and the shard's number."""

import io
import json
from collections.abc import Iterable
from multiprocessing import Value
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from lit_transfusion.data.digests import SamePictures, seen_in, without_repeats
from lit_transfusion.data.images import read_pixels
from lit_transfusion.data.shards import ShardWriter
from lit_transfusion.data.shards.files import whole_file
from lit_transfusion.data.shards.layout import PREPARING, tar_name
from lit_transfusion.data.shards.writer import picture_file
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.readers import Item, Reader


class Made(NamedTuple):
    """What is known of a finished shard, beside the rows of the index."""

    name: str  # of the tar
    num_examples: int
    bytes: int
    sha256: str
    skipped: list[Skipped]


class Picture(NamedTuple):
    """What goes into a shard."""

    key: str
    name: str  # as its owner would look for it
    file: bytes  # content of the picture file in the shard
    captions: tuple[str, ...]
    content: bytes  # of the file that it was, and what is seen in it (data/digests.py)
    seen: bytes
    moments: Tensor | None = None  # (2, K, h, w) float16, of the picture and of its mirror image


class ShardMaker(Dataset):
    """Shard number → what was made of it, or in words why it could not be written.

    Items of the input whose files are equal are one picture, by the name of the first, with the captions of all. The
    pictures are shuffled as a whole, by one permutation that `seed` chooses, and cut into parts of `shard_size`. A tar
    is in its place when it is finished, and what is known of it is written last: without that it is made again.

    Args:
        reader: The input.
        contents: What the files of its items hold, (n, 2) uint64; see `contents.py`.
        folder: Where the shards go.
        image_size: Side of the square pictures.
        format: Of the pictures in the tars.
        shard_size: Pictures of the input that go into one shard, those that are skipped included.
        seed: Chooses the permutation.
        encoded: Whether the moments of the pictures go into the shards, too.
    """

    def __init__(
        self,
        reader: Reader,
        contents: np.ndarray,
        folder: Path,
        image_size: int,
        format: Literal["webp", "png", "jpg"],
        shard_size: int,
        seed: int,
        encoded: bool = False,
    ) -> None:
        self.reader = reader
        self.contents = contents
        self.same = SamePictures(contents)
        self.folder = folder
        self.image_size = image_size
        self.format = format
        self.shard_size = shard_size
        self.encoded = encoded
        self.order = np.random.default_rng(seed).permutation(len(self.same))
        self.done = Value("q", 0)  # pictures looked at, by all processes

    def __len__(self) -> int:
        return -(-len(self.order) // self.shard_size)

    def __getitem__(self, shard: int) -> Made | str:
        return self.make(shard, map(self.read, self.part(shard)))

    def make(self, shard: int, pictures: Iterable[Picture | Skipped]) -> Made | str:
        """A shard of the pictures that belong to it, or those that there are in their place. Errors are said in words:
        as an exception, a worker's would come with a traceback."""
        try:
            return self._make(shard, pictures)
        except InputError as error:
            return str(error)

    def part(self, shard: int) -> range:
        """Positions in the order that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.order)))

    def read(self, number: int) -> Picture | Skipped:
        """What is at a position in the order."""
        same = self.same[self.order[number]]
        items = [self.reader[index] for index in same]
        item = items[0]
        if isinstance(item, Skipped):
            return item
        captions = [caption for each in items if isinstance(each, Item) for caption in each.captions]
        try:
            pixels = read_pixels(item.file, self.image_size)
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

    def made(self, shard: int) -> Made | None:
        """What is known of a shard, if it is finished and its tar still has the size that it was written with."""
        try:
            known = json.loads(self._note(shard, "json").read_text(encoding="utf-8"))
            if (self.folder / known["name"]).stat().st_size != known["bytes"]:
                return None
        except FileNotFoundError:
            return None
        return Made(**{**known, "skipped": [Skipped(*skipped) for skipped in known["skipped"]]})

    def rows(self, shard: int) -> np.ndarray:
        return np.load(self._note(shard, "npy"))

    def _make(self, shard: int, pictures: Iterable[Picture | Skipped]) -> Made:
        skipped = []
        with whole_file(self.folder / tar_name(shard)) as file:
            writer = ShardWriter(file, shard, self.format, self.encoded)
            for number, picture in zip(self.part(shard), pictures, strict=True):
                if isinstance(picture, Skipped):
                    skipped.append(picture)
                else:
                    writer.add(
                        number,
                        picture.key,
                        picture.file,
                        picture.captions,
                        picture.content,
                        picture.seen,
                        picture.moments,
                    )
                with self.done.get_lock():
                    self.done.value += 1
            writer.close()
        made = Made(tar_name(shard), len(writer.rows), writer.size, writer.sha256, skipped)
        rows = io.BytesIO()
        np.save(rows, writer.rows)
        with whole_file(self._note(shard, "npy")) as file:
            file.write(rows.getvalue())
        with whole_file(self._note(shard, "json")) as file:
            file.write(json.dumps(made._asdict()).encode())
        return made

    def _note(self, shard: int, suffix: str) -> Path:
        return self.folder / PREPARING / f"{shard:05d}.{suffix}"
