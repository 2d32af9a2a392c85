"""Reads any example of a folder of shards with one read."""

import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_transfusion.data.shards.files import OpenFiles
from lit_transfusion.data.shards.layout import (
    INDEX,
    KIND,
    MOMENTS,
    MOMENTS_ROW,
    PREPARING,
    ROW,
    ROWS,
    VERSION,
    moments_place,
    span,
    tar_name,
)
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError


class Sample(NamedTuple):
    """A picture as it lies in a shard."""

    key: str
    pixels: Tensor  # (3, S, S) uint8
    captions: tuple[str, ...]


class EncodedSample(NamedTuple):
    """What a codec has kept of a picture, as it lies in a shard."""

    key: str
    image: Tensor  # (K, h, w) float16, the moments of the picture
    mirror_image: Tensor  # (K, h, w) float16, those of its mirror image
    captions: tuple[str, ...]


class ShardFolder:
    """A folder that `prepare` has made, by index. Examples are in the order of the hashes of their keys.

    Where each lies is memory-mapped: however many there are, it takes none of a process's own memory.

    Args:
        path: The folder.

    Raises:
        InputError: There is no such folder, it holds no shards or is not finished, its layout is of another version,
            or a tar is missing or has another size than it was written with.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        self.index = read_index(self.path)
        self._files = OpenFiles()
        self._rows: np.ndarray | None = None
        self._moments_rows: np.ndarray | None = None
        self._check_sizes()
        check_belongs(self.path / ROWS, self.rows, self.index)
        if self.codec:
            check_belongs(self.path / MOMENTS, self.moments_rows, self.index)

    @property
    def codec(self) -> dict[str, Any] | None:
        """What encoded the pictures: identity, class_path, init_args, shape of the moments; None if nothing did."""
        return self.index.get("codec")

    @property
    def rows(self) -> np.ndarray:
        """Where the examples lie: (n,) of `layout.ROW`, sorted by `fraction`."""
        if self._rows is None:
            self._rows = mapped(self.path / ROWS, ROW)
        return self._rows

    @property
    def moments_rows(self) -> np.ndarray:
        """How long the moments are, in the order of `rows`: (n,) of `layout.MOMENTS_ROW`."""
        if self._moments_rows is None:
            self._moments_rows = mapped(self.path / MOMENTS, MOMENTS_ROW)
        return self._moments_rows

    def __len__(self) -> int:
        return self.index["num_examples"]

    def __getitem__(self, index: int) -> Sample | Skipped:
        """The example, or that its bytes are not those that were written."""
        row = self.rows[index]
        content = self._read(int(row["shard"]), int(row["offset"]), span(row), int(row["checksum"]))
        if isinstance(content, Skipped):
            return content
        said = json.loads(content[-int(row["json_bytes"]) :])
        return Sample(said["key"], decoded(content[: int(row["picture_bytes"])]), tuple(said["captions"]))

    def encoded(self, index: int) -> EncodedSample | Skipped:
        """The example as its codec encoded it; the picture itself is not read."""
        row, moments_row = self.rows[index], self.moments_rows[index]
        place = moments_place(row, moments_row)
        content = self._read(int(row["shard"]), *place, int(moments_row["moments_checksum"]))
        if isinstance(content, Skipped):
            return content
        said = json.loads(content[: int(row["json_bytes"])])
        moments = np.load(io.BytesIO(content[-int(moments_row["moments_bytes"]) :]))
        # Each by itself: a process would send the other along with a part of a tensor.
        image, mirror_image = (torch.from_numpy(half.copy()) for half in moments)
        return EncodedSample(said["key"], image, mirror_image, tuple(said["captions"]))

    def _read(self, shard: int, start: int, size: int, checksum: int) -> bytes | Skipped:
        """A part of a tar, if it is what was written there."""
        tar = str(self.path / tar_name(shard))
        try:
            content = self._files.read(tar, start, size)
        except OSError:
            return Skipped(tar, "shard cannot be read")
        if len(content) != size or zlib.crc32(content) != checksum:
            return Skipped(f"{tar} at {start}", "damaged in its shard")
        return content

    def damaged(self) -> list[str]:
        """Names of the tars whose content is not what was written; reads all of them."""
        return [shard["name"] for shard in self.index["shards"] if sha256(self.path / shard["name"]) != shard["sha256"]]

    def _check_sizes(self) -> None:
        for shard in self.index["shards"]:
            tar = self.path / shard["name"]
            if not tar.is_file():
                raise InputError(f"{tar} is missing: copy it again, or prepare {self.path} again")
            size = tar.stat().st_size
            if size != shard["bytes"]:
                raise InputError(
                    f"{tar} has {size} bytes and was written with {shard['bytes']}: it was cut short or changed; copy "
                    f"it again, or prepare {self.path} again"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_rows": None, "_moments_rows": None}  # a process maps them itself; they would be sent


def read_index(folder: Path) -> dict[str, Any]:
    """What index.json says."""
    path = folder / INDEX
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; set path to a folder that `prepare` has made")
    if not path.is_file() and (folder / PREPARING).is_dir():
        raise InputError(f"{folder} is not finished: run the same `prepare` again, and it goes on where it stopped")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no {INDEX} in {folder}; set path to a folder that `prepare` has made") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy it again") from None
    if not isinstance(index, dict) or index.get("kind") != KIND:
        raise InputError(f"{path} is not that of a folder that `prepare` has made")
    if index["version"] != VERSION:
        raise InputError(
            f"{path} is of version {index['version']}, and this code reads version {VERSION}, in which copies of a "
            "picture are never both held out and trained on: prepare it again"
        )
    return index


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """An array on the disk."""
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy it again") from None
    if rows.dtype != dtype:
        raise InputError(f"{path} is not an index of shards: copy it again")
    return rows


def check_belongs(path: Path, rows: np.ndarray, index: dict[str, Any]) -> None:
    if rows.shape != (index["num_examples"],):
        raise InputError(f"{path} does not belong to {path.with_name(INDEX)}: copy both again")


def decoded(content: bytes) -> Tensor:
    """The content of a picture file → uint8 (3, S, S)."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
