"""The directory of a run: the names of what is in it, and the lock that a `fit` holds on it."""

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import is_whole

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
CHECKPOINTS = "checkpoints"
FINISHED = "finished.json"  # {"step": …}, when all steps are done
LOCK = "fit.lock"
HOLDER = "fit.json"  # host, pid and since when, while a `fit` runs; its time of modification is renewed

BEAT = 10.0  # seconds between two renewals of HOLDER
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system without locks


def is_run(folder: Path) -> bool:
    """Whether a run has been trained there."""
    return (folder / CONFIG).exists() and (folder / TOKENIZER).exists()


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint from which the run in `folder` resumes: a file, or a directory of shards; None without any.

    A run that was killed while it moved last.ckpt has none, or a link to a file that it had just removed; a sharded run
    that was killed while it wrote a checkpoint has a directory that lacks something.
    """
    whole = [path for path in (folder / CHECKPOINTS).glob("*.ckpt") if path.is_file() or is_whole(path)]
    named = [path for path in whole if path.name.startswith("last")]
    return max(named or whole, key=lambda path: path.stat().st_mtime_ns, default=None)


def read_json(path: Path) -> dict[str, Any]:
    """What a file contains; nothing without a file, or if whoever wrote it was killed before its end."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole: whoever is killed meanwhile leaves the earlier one."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


@contextmanager
def locked(folder: Path, new_run: bool) -> Iterator[None]:
    """Make sure that no other `fit` trains in `folder` meanwhile. A new run moves an earlier one to NAME.1, NAME.2, …

    The kernel releases the lock of a process that was killed. Where locks do not work, or not between hosts (some
    network file systems), HOLDER decides: its process renews it every BEAT seconds, and one that is not renewed for
    three times as long is of a dead process.

    Raises:
        InputError: Another `fit` trains there, or the directory cannot be written.
    """
    created = not folder.exists()
    lock = take(folder)
    if new_run and (moved := move_aside(folder, lock)):
        lock.release()
        for name in (LOCK, HOLDER):
            (moved / name).unlink(missing_ok=True)
        lock = take(folder)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    write_text(folder / HOLDER, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n")
    stop = threading.Event()
    threading.Thread(target=renew, args=(folder / HOLDER, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        (folder / HOLDER).unlink(missing_ok=True)
        with suppress(OSError):  # Windows removes nothing that is open
            (folder / LOCK).unlink()  # filelock notices if it takes the lock of a file that is no longer there
        lock.release()
        if created and folder.exists() and not any(folder.iterdir()):  # an error came before the run began
            folder.rmdir()


def take(folder: Path) -> FileLock:
    """The lock of a directory, which is created if it does not exist."""
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise in_use(folder) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(
                f"trainer.default_root_dir {folder} cannot be written: {error.strerror}; choose another directory"
            ) from None
    elsewhere = read_json(folder / HOLDER).get("host") != socket.gethostname()
    if (elsewhere or not lock.is_locked) and is_renewed(folder / HOLDER):
        lock.release()
        raise in_use(folder)
    return lock


def in_use(folder: Path) -> InputError:
    holder = read_json(folder / HOLDER)
    who = "process {pid} on {host} trains there since {since}".format(**holder) if holder else "it has just begun"
    return InputError(
        f"trainer.default_root_dir {folder} is in use by another fit: {who}; wait until it ends, stop it, or choose "
        "another directory"
    )


def renew(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):  # the network is away, or somebody has moved the directory
            os.utime(path)


def is_renewed(path: Path) -> bool:
    """Whether the process that HOLDER names is alive. Takes three times BEAT if it is not; at once if HOLDER is old."""
    with suppress(FileNotFoundError):  # it has ended meanwhile
        first = time_of(path)
        if abs(time.time() - first) > 100 * BEAT:  # that much, clocks of hosts do not differ
            return False
        log.info("waiting up to %.0f s to see whether the fit that %s names is alive", 3 * BEAT, path)
        until = time.monotonic() + 3 * BEAT
        while time.monotonic() < until:
            time.sleep(BEAT / 10)
            if time_of(path) != first:
                return True
    return False


def time_of(path: Path) -> float:
    with path.open() as file:  # a network file system then asks its server
        return os.fstat(file.fileno()).st_mtime


def move_aside(folder: Path, lock: FileLock) -> Path | None:
    """Move an earlier run to NAME.1, NAME.2, … and return the new place; None if there is nothing to move.

    A job that was preempted and queued again finds Lightning's own checkpoint there, and resumes from that.
    """
    if not is_run(folder) or any(folder.glob("hpc_ckpt_*")) or Path.cwd().is_relative_to(folder.resolve()):
        return None
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    if os.name == "nt":  # where nothing that is open can be moved
        lock.release()
    folder.rename(moved)
    print(f"The earlier run in {folder} is now in {moved}. (To continue a run, add --ckpt_path last.)")
    return moved
