"""The lock of a file: one process at a time, on Windows, too."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[tuple[int, ...]]:
    """Hold the lock of a file, which is created. It is free when this process ends, however it ends.

    Yields what to give as `pass_fds` to a process that is started meanwhile: it then holds the lock, too, and still
    does if this process is killed. On Windows it is empty.

    Args:
        path: The file.
        waiting: Called before another process that has the lock is waited for.

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
