"""The examples of a text corpus in two Arrow files, training and held-out, which are written once and memory-mapped.

pyarrow reads them alone: `datasets` needs memory that grows with the number of documents, and is slower (docs/LOG.md).
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

try:
    import fcntl  # filelock has no shared locks
except ImportError:  # Windows: an open file is the lock, because it cannot be deleted
    fcntl = None

from lit_transfusion.data.sources.base import fraction
from lit_transfusion.data.sources.cache_folder import cache_folders
from lit_transfusion.data.sources.text_files import documents_of
from lit_transfusion.data.types import TextExample, format_reasons
from lit_transfusion.errors import InputError
from lit_transfusion.file_lock import locked
from lit_transfusion.progress import reporting
from lit_transfusion.whole_file import whole_file

if TYPE_CHECKING:
    from pyarrow import RecordBatchFileReader

SUFFIXES = (".txt", ".jsonl", ".parquet")
VERSION = 1  # of the examples; part of the fingerprint, which a resumed run compares
ROWS = 100  # examples of a record batch, which is in memory while it is written
REPORT = "report.json"  # written last; processes that use the table lock this file

_used: dict[Path, int] = {}  # table → open file, which this process keeps locked until it ends

log = logging.getLogger(__name__)


class TextOptions(NamedTuple):
    """The options of a table."""

    documents: Literal["file", "block"]
    column: str
    val_fraction: float
    seed: int


class TextTable(NamedTuple):
    """The folder of a table, with the counts of its documents."""

    folder: Path
    num_examples: dict[str, int]  # "train" and "val"
    num_documents: int
    left_out: dict[str, tuple[int, str]]  # reason → count, and file and number of the first document

    def example(self, part: Literal["train", "val"], index: int) -> TextExample:
        """An example of a split. Raises IndexError."""
        if not 0 <= index < self.num_examples[part]:
            raise IndexError(f"index {index} of {self.num_examples[part]} examples")
        batch, row = divmod(index, ROWS)
        columns = opened(self.folder, part, os.getpid()).get_batch(batch)
        return TextExample(*(column[row].as_py() for column in columns))


@lru_cache(maxsize=64)
def opened(folder: Path, part: str, process: int) -> "RecordBatchFileReader":
    """Map the file of a split into memory, in each process anew."""
    import pyarrow

    options = pyarrow.ipc.IpcReadOptions(use_threads=False)
    return pyarrow.ipc.open_file(pyarrow.memory_map(f"{folder}/{part}.arrow"), options=options)


def text_table(path: Path, options: TextOptions) -> TextTable:
    """The table of a corpus: the saved one if no file has changed, or else a new one.

    It is saved in `.lit_transfusion` beside the texts or, if that is not writable, in the user's cache. Of several
    processes one writes it, and the others wait.

    Raises:
        InputError: There are no texts, none can be used, or the table cannot be written.
    """
    root = path if path.is_dir() else path.parent
    corpus = hashlib.sha256(os.fsencode(path.relative_to(root)) + repr(options).encode()).hexdigest()[:8]
    name = f"texts-{corpus}-{fingerprint(path, options)}"
    places = cache_folders(root)
    for place in places:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return load(place / name)
    for place in places:
        lock = ExitStack()
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock.enter_context(locked(place / "lock", lambda: log.info("waiting for a process that reads %s", path)))
        except OSError:
            continue
        with lock:
            if not (place / name / REPORT).is_file():
                try:
                    write(place / name, path, options)
                finally:
                    drop_outdated(place, f"texts-{corpus}-", name)
            return load(place / name)
    raise InputError(
        f"the texts of {path} cannot be saved: neither {places[0]} nor {places[1]} is writable; make one writable"
    )


def load(folder: Path) -> TextTable:
    """Load a table and lock it: no process deletes it until this process and its forks have ended."""
    report = folder / REPORT
    table = TextTable(folder, **json.loads(report.read_text(encoding="utf-8")))
    if folder not in _used:
        _used[folder] = os.open(report, os.O_RDONLY)
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(_used[folder], fcntl.LOCK_SH)
    return table


def drop_outdated(place: Path, prefix: str, current: str) -> None:
    """Delete unfinished tables, and those from before a file changed, except those that a process uses."""
    for folder in place.glob(f"{prefix}*"):
        report = folder / REPORT
        if folder.name == current and report.exists():
            continue
        with contextlib.suppress(OSError):  # in use
            if report.exists():
                with open(report, "rb") as file:
                    if fcntl:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                report.unlink()
            shutil.rmtree(folder)


def files_of(path: Path) -> Iterator[Path]:
    """Yield the text files in a folder and its subfolders, sorted by name in each. Hidden ones are ignored."""
    if path.is_file():
        yield path
        return
    for place, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(place, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and file.is_file():  # not a broken link
                yield file


def fingerprint(path: Path, options: TextOptions) -> str:
    """A hash that changes when a file is added, removed or changed, or an option changes."""
    root = path if path.is_dir() else path.parent
    digest = hashlib.sha256(repr((VERSION, *options)).encode())
    empty = True
    for file in files_of(path):
        status = file.stat()
        digest.update(os.fsencode(file.relative_to(root)) + f"\n{status.st_size} {status.st_mtime_ns}\n".encode())
        empty = False
    if empty:
        raise InputError(f"no texts in {path} or the folders in it; set path to a folder with {' '.join(SUFFIXES)}")
    return digest.hexdigest()[:16]


def write(folder: Path, path: Path, options: TextOptions) -> None:
    """Write the table of a corpus."""
    folder.mkdir(exist_ok=True)
    share = options.val_fraction
    table, lowest, highest = divide(folder, path, options, share)
    # As in `hold_out`: not all documents and, if they differ, at least one.
    limit = share and min(max(share, np.nextafter(lowest, 1.0)), highest)
    if (lowest < limit, highest < limit) != (lowest < share, highest < share):  # a few documents
        table, *_ = divide(folder, path, options, limit)
    with whole_file(folder / REPORT) as file:
        file.write(json.dumps({name: value for name, value in table._asdict().items() if name != "folder"}).encode())


def divide(folder: Path, path: Path, options: TextOptions, limit: float) -> tuple[TextTable, float, float]:
    """Read all files once, and write the examples of both splits. Documents with a fraction below `limit` are held out.

    Returns the table, and the lowest and highest fraction.
    """
    num_examples = {"train": 0, "val": 0}
    left_out: dict[str, tuple[int, str]] = {}
    num_documents, lowest, highest = 0, 1.0, 0.0
    megabyte, before, total = 1e6, 0, sum(file.stat().st_size for file in files_of(path))
    with reporting("MB") as on_progress, split_file(folder, "train") as to_train, split_file(folder, "val") as to_val:
        for file in files_of(path):
            documents = documents_of(file, options.column, options.documents == "block")
            for number, document in enumerate(documents, 1):
                if document.fault:
                    count, first = left_out.get(document.fault, (0, f"{file}, document {number}"))
                    left_out[document.fault] = count + 1, first
                    continue
                share = fraction(document.digest, options.seed)
                lowest, highest = min(lowest, share), max(highest, share)
                num_documents += 1
                part, add = ("val", to_val) if share < limit else ("train", to_train)
                for example in document.examples:
                    add(example)
                    num_examples[part] += 1
                on_progress(f"reading {path.name}", (before + document.end) / megabyte, total / megabyte)
            before += file.stat().st_size
            on_progress(f"reading {path.name}", before / megabyte, total / megabyte)
    if not num_documents:
        raise InputError(f"none of the documents in {path} can be used: {format_reasons(left_out)}; fix them")
    return TextTable(folder, num_examples, num_documents, left_out), lowest, highest


@contextmanager
def split_file(folder: Path, part: str) -> Iterator[Callable[[TextExample], None]]:
    """Write the Arrow file of a split. Yields the function that adds an example. Raises InputError on a full disk."""
    import pyarrow

    schema = pyarrow.schema({"text": pyarrow.large_string(), "complete": pyarrow.bool_()})
    rows: list[dict] = []

    def flush() -> None:
        writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
        rows.clear()

    def add(example: TextExample) -> None:
        rows.append(example._asdict())
        if len(rows) == ROWS:
            flush()

    with whole_file(folder / f"{part}.arrow") as file, pyarrow.ipc.new_file(file, schema) as writer:
        yield add
        flush()
