"""Reading of many files at random positions."""

import os
import threading
from collections import OrderedDict

MOST_OPEN = 64  # files that one process keeps open at the same time

_seeking = threading.Lock()


class OpenFiles:
    """Reads any range of bytes of many files. The files used last stay open.

    Reads do not use a file position, so that forked processes do not disturb each other. A copy, also one in another
    process, opens its own files.
    """

    def __init__(self) -> None:
        self._handles: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Read bytes of a file; fewer than `size` at its end.

        Raises:
            OSError: The file does not exist or cannot be read.
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
    """Read bytes of an open file, starting at `offset`."""
    if hasattr(os, "pread"):
        return os.pread(handle, size, offset)
    with _seeking:  # Windows: threads share the position of the handle
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)
