"""Random access to the examples of a folder of shards, with one read each."""

import hashlib
import io
import json
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
from lit_transfusion.data.shards.open_files import OpenFiles
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError


class Sample(NamedTuple):
    """A picture with captions, as saved in a shard."""

    key: str
    pixels: Tensor  # (3, height, width) uint8
    captions: tuple[str, ...]


class EncodedSample(NamedTuple):
    """The moments of a picture with captions, as saved in a shard."""

    key: str
    image: Tensor  # (K, h, w) float16, the moments of the picture
    mirror_image: Tensor  # (K, h, w) float16, the moments of its mirror image
    captions: tuple[str, ...]


class ShardFolder:
    """Examples of a folder made by `prepare`, by index. They are sorted by `fraction` (see `layout.ROW`).

    The index is memory-mapped, so that it needs no memory of the process, for any number of examples.

    Args:
        path: The folder.

    Raises:
        InputError: The folder does not exist, contains no shards, is not finished or has another layout version; or a
            tar is missing or has the wrong size.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        self.index = read_index(self.path)
        self._files = OpenFiles()
        self._check_sizes()
        check_row_count(self.path / ROWS, self.rows, self.index)
        if self.codec:
            check_row_count(self.path / MOMENTS, self.moments_rows, self.index)

    @property
    def codec(self) -> dict[str, Any] | None:
        """The codec of the moments (identity, class_path, init_args, shape of the moments); None without moments."""
        return self.index.get("codec")

    @cached_property
    def rows(self) -> np.ndarray:
        """Positions of the examples: (n,) of `layout.ROW`, sorted by `fraction`."""
        return memory_map(self.path / ROWS, ROW)

    @cached_property
    def moments_rows(self) -> np.ndarray:
        """Sizes of the moments, in the order of `rows`: (n,) of `layout.MOMENTS_ROW`."""
        return memory_map(self.path / MOMENTS, MOMENTS_ROW)

    def __len__(self) -> int:
        return self.index["num_examples"]

    def __getitem__(self, index: int) -> Sample | Skipped:
        """Read an example; Skipped if its bytes are damaged."""
        row = self.rows[index]
        content = self._read(int(row["shard"]), int(row["offset"]), span(row), int(row["checksum"]))
        if isinstance(content, Skipped):
            return content
        metadata = json.loads(content[-int(row["json_bytes"]) :])
        return Sample(
            metadata["key"], decode_picture(content[: int(row["picture_bytes"])]), tuple(metadata["captions"])
        )

    def encoded(self, index: int) -> EncodedSample | Skipped:
        """Read the moments of an example, without its picture; Skipped if its bytes are damaged."""
        row, moments_row = self.rows[index], self.moments_rows[index]
        place = moments_place(row, moments_row)
        content = self._read(int(row["shard"]), *place, int(moments_row["moments_checksum"]))
        if isinstance(content, Skipped):
            return content
        metadata = json.loads(content[: int(row["json_bytes"])])
        moments = np.load(io.BytesIO(content[-int(moments_row["moments_bytes"]) :]))
        # Copies, because a worker sends the whole storage of a tensor, which would include the other half.
        image, mirror_image = (torch.from_numpy(half.copy()) for half in moments)
        return EncodedSample(metadata["key"], image, mirror_image, tuple(metadata["captions"]))

    def _read(self, shard: int, start: int, size: int, checksum: int) -> bytes | Skipped:
        """Read bytes of a tar and verify their checksum; Skipped if they are damaged."""
        tar = str(self.path / tar_name(shard))
        try:
            content = self._files.read(tar, start, size)
        except OSError:
            return Skipped(tar, "shard cannot be read")
        if len(content) != size or zlib.crc32(content) != checksum:
            return Skipped(f"{tar} at {start}", "damaged in its shard")
        return content

    def damaged(self) -> list[str]:
        """Names of the tars whose content has changed. This reads all tars."""
        return [shard["name"] for shard in self.index["shards"] if sha256(self.path / shard["name"]) != shard["sha256"]]

    def _check_sizes(self) -> None:
        for shard in self.index["shards"]:
            tar = self.path / shard["name"]
            if not tar.is_file():
                raise InputError(f"{tar} is missing; copy it again, or prepare {self.path} again")
            size = tar.stat().st_size
            if size != shard["bytes"]:
                raise InputError(
                    f"{tar} has {size} bytes instead of {shard['bytes']}: it is truncated or changed; copy it again, "
                    f"or prepare {self.path} again"
                )

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy for another process, which maps the rows itself."""
        return {name: value for name, value in vars(self).items() if name not in ("rows", "moments_rows")}


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check index.json."""
    path = folder / INDEX
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; set path to a folder made by `prepare`")
    if not path.is_file() and (folder / PREPARING).is_dir():
        raise InputError(f"{folder} is not finished: run the same `prepare` again")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no {INDEX} in {folder}; set path to a folder made by `prepare`") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from None
    if not isinstance(index, dict) or index.get("kind") != KIND:
        raise InputError(f"{path} was not written by `prepare`; set path to a folder made by `prepare`")
    if index["version"] != VERSION:
        raise InputError(
            f"{path} has version {index['version']}, but this code reads version {VERSION}, in which copies of a "
            "picture are never both held out and trained on; prepare it again"
        )
    return index


def memory_map(path: Path, dtype: np.dtype) -> np.ndarray:
    """Map an array file into memory."""
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from None
    if rows.dtype != dtype:
        raise InputError(f"{path} is not an index of shards; copy it again")
    return rows


def check_row_count(path: Path, rows: np.ndarray, index: dict[str, Any]) -> None:
    """Check that an array has a row for each example of index.json."""
    if rows.shape != (index["num_examples"],):
        raise InputError(f"{path} does not belong to {path.with_name(INDEX)}; copy both again")


def decode_picture(content: bytes) -> Tensor:
    """Decode the content of a picture file to uint8 (3, height, width)."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
