"""Files that appear whole or not at all, and files that are read at random places."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lit_transfusion.errors import InputError

MOST_OPEN = 64  # files that one process keeps open at once

_seeking = threading.Lock()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that has its name only when all of it is on the disk, whenever the process may be killed.

    Raises:
        InputError: The disk is full, or the like; nothing of the file is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in it last through a loss of power. (Windows has no means for that.)"""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class OpenFiles:
    """Reads at any place of any of many files, of which those used last stay open.

    Reads have no position in the file, so that processes that were forked from one do not disturb each other. A copy,
    and what another process unpickles, opens files of its own.
    """

    def __init__(self) -> None:
        self._handles: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes of a file; fewer than `size` if it ends before.

        Raises:
            OSError: It is not there, or cannot be read.
        """
        if path not in self._handles:
            if len(self._handles) >= MOST_OPEN:
                os.close(self._handles.popitem(last=False)[1])
            self._handles[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._handles.move_to_end(path)
        return read_at(self._handles[path], size, offset)

    def __getstate__(self) -> dict:
        return {"_handles": OrderedDict()}

    def __del__(self) -> None:
        for handle in self._handles.values():
            os.close(handle)


def read_at(handle: int, size: int, offset: int) -> bytes:
    """Bytes of an open file from a place in it."""
    if hasattr(os, "pread"):
        return os.pread(handle, size, offset)
    with _seeking:  # Windows: the place is that of the handle, which threads share
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)
