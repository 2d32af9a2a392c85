"""Digests of all files of an input, which tell equal pictures. All files are read once, before shards are made."""

from functools import partial
from pathlib import Path

import numpy as np

from lit_transfusion.data.digests import as_digests, content_of
from lit_transfusion.data.shards.layout import PREPARING
from lit_transfusion.data.types import Skipped
from lit_transfusion.prepare.readers import Item, Reader
from lit_transfusion.prepare.worker_pool import in_workers
from lit_transfusion.progress import reporting
from lit_transfusion.whole_file import whole_file

FILE = "contents.npy"
AT_ONCE = 64  # items of one task of a worker


def input_contents(reader: Reader, folder: Path, num_workers: int) -> np.ndarray:
    """Digests of the files of all items, (n, 2) uint64. An item without a picture has a digest that equals no other.

    They are saved in the folder of `prepare`, so that a resumed command does not read the files again.
    """
    file = folder / PREPARING / FILE
    if file.exists():
        return np.load(file)
    starts = range(0, len(reader), AT_ONCE)
    found: list[np.ndarray] = []
    with reporting("pictures") as on_progress:
        for part in in_workers(partial(_contents, reader), starts, num_workers):
            found.append(part)
            on_progress("comparing", min(AT_ONCE * len(found), len(reader)), len(reader))
    contents = np.concatenate([np.zeros((0, 2), "<u8"), *found])
    with whole_file(file) as opened:
        np.lib.format.write_array(opened, contents)
    return contents


def _contents(reader: Reader, start: int) -> np.ndarray:
    return as_digests([_content(index, reader[index]) for index in range(start, min(start + AT_ONCE, len(reader)))])


def _content(index: int, item: Item | Skipped) -> bytes:
    if isinstance(item, Skipped):
        return content_of(b"", f"item {index}")
    try:
        data = Path(item.file).read_bytes() if isinstance(item.file, str | Path) else item.file.read()
    except OSError:  # reading the picture reports this error later
        data = b""
    return content_of(data, item.key)
