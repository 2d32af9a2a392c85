"""The run directory: the names of its files, and the lock that a `fit` holds."""

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
from lit_transfusion.whole_file import whole_file

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")  # a run has one of them
CODEC = "codec"  # folder of the autoencoder, of a run of `train_codec`
CHECKPOINTS = "checkpoints"
FINISHED = "finished.json"  # {"step": …}, after the last step
NONFINITE = "nonfinite"  # folder: the batches of optimiser steps that were not finite
LOCK = "fit.lock"
EVALUATION = "evaluation.json"  # what `evaluate --output` measured; its pictures are in SAMPLES
SAMPLES = "samples"  # folder
PLANNED = "planned.yaml"  # the training config of a run of a study
ASKED = "asked.yaml"  # the options of `evaluate` while it runs for a study
EVALUATED = "evaluate.yaml"  # the same, when it is finished
LOG = "log.txt"  # output of the commands of a run of a study
JOB_LOCK = "lock"  # held while a study works at the run
HOLDER = "fit.json"  # host, pid and start time of a running `fit`, which renews its modification time

RENEW_SECONDS = 10.0  # seconds between two renewals of HOLDER
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of a file system without locks


def is_run(folder: Path) -> bool:
    """Whether the folder is a run directory."""
    made = (*TOKENIZERS, CODEC)  # what each kind of run has, and nothing else with a config.yaml
    return (folder / CONFIG).exists() and any((folder / name).exists() for name in made)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint from which the run in `folder` resumes: a file or a directory of shards, or None.

    If a run was killed while it replaced last.ckpt, that is missing, or a link to a removed file. If a sharded run was
    killed while it wrote a checkpoint, that directory is incomplete.
    """
    from lit_transfusion.generation.checkpoint import is_whole  # here, since it imports torch

    whole = [path for path in (folder / CHECKPOINTS).glob("*.ckpt") if path.is_file() or is_whole(path)]
    named = [path for path in whole if path.name.startswith("last")]
    return max(named or whole, key=lambda path: path.stat().st_mtime_ns, default=None)


def config_of(checkpoint: str | Path) -> Path:
    """The config of the run that wrote a checkpoint: RUN/checkpoints/NAME.ckpt → RUN/config.yaml."""
    return Path(checkpoint).absolute().parent.parent / CONFIG


def metrics_files(folder: Path) -> list[Path]:
    """The files of Lightning's CSVLogger, one for each start of the run, oldest first."""
    return sorted(folder.glob("metrics/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, or {} if the file is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a process that is killed during the write leaves the earlier file unchanged."""
    with whole_file(path) as file:
        file.write(text.encode())


@contextmanager
def locked(folder: Path, new_run: bool) -> Iterator[None]:
    """Hold the lock of a run directory, so that no other `fit` trains there.

    A new run moves an earlier one to NAME.1, NAME.2, …

    The kernel releases the lock of a killed process. Some network file systems have no locks, or none between hosts.
    There HOLDER decides: its process renews it every RENEW_SECONDS, and is dead if HOLDER is not renewed for three
    times as long.

    Raises:
        InputError: Another `fit` trains there, or the directory cannot be written.
    """
    created = not folder.exists()
    lock = acquire(folder)
    if new_run and (moved := move_aside(folder, lock)):
        lock.release()
        for name in (LOCK, HOLDER):
            (moved / name).unlink(missing_ok=True)
        lock = acquire(folder)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    write_text(folder / HOLDER, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n")
    stop = threading.Event()
    threading.Thread(target=renew, args=(folder / HOLDER, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        (folder / HOLDER).unlink(missing_ok=True)
        with suppress(OSError):  # Windows cannot remove an open file
            (folder / LOCK).unlink()  # filelock detects a lock on a removed file
        lock.release()
        if created and folder.exists() and not any(folder.iterdir()):  # an error before the run started
            folder.rmdir()


def acquire(folder: Path) -> FileLock:
    """Acquire the lock of a run directory, which is created if it does not exist.

    Raises:
        InputError: Another `fit` trains there, or the directory cannot be written.
    """
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
    """Make the error that names the `fit` that trains in `folder`."""
    holder = read_json(folder / HOLDER)
    who = "process {pid} on {host}, started {since}".format(**holder) if holder else "it has just started"
    return InputError(
        f"trainer.default_root_dir {folder} is in use by another fit: {who}; wait until it ends, stop it, or choose "
        "another directory"
    )


def renew(path: Path, stop: threading.Event) -> None:
    """Renew HOLDER until `stop` is set."""
    while not stop.wait(RENEW_SECONDS):
        with suppress(OSError):  # no network, or the directory was moved
            os.utime(path)


def is_renewed(path: Path) -> bool:
    """Whether the process that HOLDER names is alive. It waits up to three times RENEW_SECONDS unless HOLDER is old."""
    with suppress(FileNotFoundError):  # the other fit has just ended
        first = modification_time(path)
        if abs(time.time() - first) > 100 * RENEW_SECONDS:  # too old; clocks of hosts do not differ that much
            return False
        log.info("waiting up to %.0f s to see whether the fit that %s names is alive", 3 * RENEW_SECONDS, path)
        until = time.monotonic() + 3 * RENEW_SECONDS
        while time.monotonic() < until:
            time.sleep(RENEW_SECONDS / 10)
            if modification_time(path) != first:
                return True
    return False


def modification_time(path: Path) -> float:
    with path.open() as file:  # open, so that a network file system asks its server
        return os.fstat(file.fileno()).st_mtime


def move_aside(folder: Path, lock: FileLock) -> Path | None:
    """Move an earlier run to NAME.1, NAME.2, … and return the new path, or None if there is nothing to move.

    Lightning's checkpoint of a job that was preempted and queued again is not moved: the job resumes from it.
    """
    if not is_run(folder) or any(folder.glob("hpc_ckpt_*")) or Path.cwd().is_relative_to(folder.resolve()):
        return None
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    if os.name == "nt":  # Windows cannot move an open file
        lock.release()
    folder.rename(moved)
    print(f"Moved the earlier run from {folder} to {moved}. (To resume a run, add --ckpt_path last.)")
    return moved
