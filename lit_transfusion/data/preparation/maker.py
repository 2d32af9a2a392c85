"""Makes one shard of an input: all that depends on nothing but the input, the settings and the shard's number."""

import io
import json
from multiprocessing import Value
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from lit_transfusion.data.document import Skipped
from lit_transfusion.data.images import read_pixels
from lit_transfusion.data.readers import Reader
from lit_transfusion.data.shards import ShardWriter
from lit_transfusion.data.shards.files import whole_file
from lit_transfusion.data.shards.layout import PREPARING, tar_name
from lit_transfusion.errors import InputError


class Made(NamedTuple):
    """What is known of a finished shard, beside the rows of the index."""

    name: str  # of the tar
    num_examples: int
    bytes: int
    sha256: str
    skipped: list[Skipped]


class ShardMaker(Dataset):
    """Shard number → what was made of it, or in words why it could not be written.

    The input is shuffled as a whole, by one permutation that `seed` chooses, and cut into parts of `shard_size`. A tar
    is in its place when it is finished, and what is known of it is written last: without that it is made again.

    Args:
        reader: The input.
        folder: Where the shards go.
        image_size: Side of the square pictures.
        format: Of the pictures in the tars.
        shard_size: Pictures of the input that go into one shard, those that are skipped included.
        seed: Chooses the permutation.
    """

    def __init__(
        self,
        reader: Reader,
        folder: Path,
        image_size: int,
        format: Literal["webp", "png", "jpg"],
        shard_size: int,
        seed: int,
    ) -> None:
        self.reader = reader
        self.folder = folder
        self.image_size = image_size
        self.format = format
        self.shard_size = shard_size
        self.order = np.random.default_rng(seed).permutation(len(reader))
        self.done = Value("q", 0)  # pictures looked at, by all processes

    def __len__(self) -> int:
        return -(-len(self.order) // self.shard_size)

    def __getitem__(self, shard: int) -> Made | str:
        """Errors are said in words: as an exception, a worker's would come with a traceback."""
        try:
            return self._make(shard)
        except InputError as error:
            return str(error)

    def part(self, shard: int) -> range:
        """Positions in the order that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.order)))

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

    def _make(self, shard: int) -> Made:
        skipped = []
        with whole_file(self.folder / tar_name(shard)) as file:
            writer = ShardWriter(file, shard, self.format)
            for number in self.part(shard):
                item = self._read(int(self.order[number]))
                if isinstance(item, Skipped):
                    skipped.append(item)
                else:
                    writer.add(number, *item)
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

    def _read(self, index: int) -> tuple[str, Any, tuple[str, ...]] | Skipped:
        """(key, pixels, captions) of an item."""
        item = self.reader[index]
        if isinstance(item, Skipped):
            return item
        try:
            return item.key, read_pixels(item.file, self.image_size), item.captions
        except ValueError as error:
            return Skipped(item.name, str(error))

    def _note(self, shard: int, suffix: str) -> Path:
        return self.folder / PREPARING / f"{shard:05d}.{suffix}"
