"""A lock file that one process at a time can hold, also on Windows."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[tuple[int, ...]]:
    """Hold the lock of a file, which is created. The lock is released when this process ends, however it ends.

    Yields the `pass_fds` for a child process, which then also holds the lock, even if this process is killed. On
    Windows they are empty.

    Args:
        path: The file.
        waiting: Called before waiting for another process that holds the lock.

    Raises:
        OSError: The file cannot be created.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield () if os.name == "nt" else (lock._context.lock_file_fd,)  # filelock has no public name for it
    finally:
        lock.release()
