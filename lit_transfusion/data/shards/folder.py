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

from lit_transfusion.data.document import Skipped
from lit_transfusion.data.shards.files import OpenFiles
from lit_transfusion.data.shards.layout import INDEX, KIND, PREPARING, ROW, ROWS, VERSION, span, tar_name
from lit_transfusion.errors import InputError


class Sample(NamedTuple):
    """A picture as it lies in a shard."""

    key: str
    pixels: Tensor  # (3, S, S) uint8
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
        self._check_sizes()
        if self.rows.shape != (self.index["num_examples"],):
            raise InputError(f"{self.path / ROWS} does not belong to {self.path / INDEX}: copy both again")

    @property
    def rows(self) -> np.ndarray:
        """Where the examples lie: (n,) of `layout.ROW`, sorted by `fraction`."""
        if self._rows is None:
            try:
                self._rows = np.load(self.path / ROWS, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{self.path / ROWS} cannot be read ({error}): copy it again") from None
            if self._rows.dtype != ROW:
                raise InputError(f"{self.path / ROWS} is not an index of shards: copy it again")
        return self._rows

    def __len__(self) -> int:
        return self.index["num_examples"]

    def __getitem__(self, index: int) -> Sample | Skipped:
        """The example, or that its bytes are not those that were written."""
        row = self.rows[index]
        tar = str(self.path / tar_name(int(row["shard"])))
        try:
            content = self._files.read(tar, int(row["offset"]), span(row))
        except OSError:
            return Skipped(tar, "shard cannot be read")
        if len(content) != span(row) or zlib.crc32(content) != row["checksum"]:
            return Skipped(f"{tar} at {row['offset']}", "damaged in its shard")
        said = json.loads(content[-int(row["json_bytes"]) :])
        return Sample(said["key"], decoded(content[: int(row["picture_bytes"])]), tuple(said["captions"]))

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
        return {**vars(self), "_rows": None}  # a process maps the index itself; it would be sent as a whole


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
            f"{path} is of version {index['version']}, and this code reads version {VERSION}: prepare it again"
        )
    return index


def decoded(content: bytes) -> Tensor:
    """The content of a picture file → uint8 (3, S, S)."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
