"""The index of a text corpus: positions of all documents, in files, so that memory does not grow with their number."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

try:
    import fcntl  # filelock has no shared locks
except ImportError:  # Windows: an open file is the lock, because a folder with an open file cannot be renamed
    fcntl = None

from lit_transfusion.data.sources.text_files import documents_of
from lit_transfusion.data.types import format_reasons
from lit_transfusion.errors import InputError
from lit_transfusion.progress import reporting
from lit_transfusion.text_reader import suffix

SUFFIXES = (".txt", ".jsonl", ".parquet")
VERSION = 1  # of the format of an index
FOLDER = ".lit_transfusion"
ROW = np.dtype(
    [
        ("name", "<i8"),  # position of the name of its file in `names`
        ("start", "<i8"),  # position of the first byte in the file; for a .parquet, in `texts`
        ("length", "<i8"),  # bytes
        ("complete", "<i8"),  # 0: the document continues in the next row
        ("fraction", "<f8"),  # hash of the text in [0, 1), to hold out by
    ]
)
CHUNK = 1000  # rows in memory at the same time
UNFINISHED = "unfinished-"  # prefix of the folder of an index that is being made or deleted
MADE_OF = "made_of.json"  # path and options of the index; processes that use the index lock this file

_used: dict[Path, int] = {}  # index → open file, which this process keeps locked until it ends


class TextOptions(NamedTuple):
    """The options of an index."""

    documents: Literal["file", "block"]
    column: str
    val_fraction: float
    seed: int


class TextIndex(NamedTuple):
    """The folder of an index, with the counts of its documents."""

    folder: Path
    num_examples: dict[str, int]  # "train" and "val"
    num_documents: int
    left_out: dict[str, int]  # reason → documents
    first_left_out: dict[str, str]  # reason → file and number of the first document

    def rows(self, part: Literal["train", "val"]) -> np.ndarray:
        """The rows of a split, (number of examples,), memory-mapped."""
        if not self.num_examples[part]:
            return np.zeros(0, ROW)
        return np.memmap(self.folder / part, ROW, "r")

    @property
    def texts(self) -> Path:
        """The file with the texts of all .parquet files."""
        return self.folder / "texts"

    def name(self, row: np.void) -> str:
        """The file of a row, relative to the corpus."""
        with open(self.folder / "names", "rb") as names:
            names.seek(int(row["name"]))
            return os.fsdecode(names.readline().rstrip(b"\n"))


def text_index(path: Path, options: TextOptions) -> TextIndex:
    """The index of a corpus: the saved one if no file has changed, or else a new one.

    It is saved in `.lit_transfusion` beside the texts or, if that is not writable, in the user's cache.

    Raises:
        InputError: There are no texts, none can be used, or the index cannot be written.
    """
    root = path if path.is_dir() else path.parent
    places = root / FOLDER, cache_home() / FOLDER.removeprefix(".") / hashlib.sha256(bytes(root)).hexdigest()[:16]
    key = fingerprint(path, options)
    for place in places:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return load(place / key)
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=place))
        except OSError:
            continue
        try:
            build(unfinished, path, options)
            made_of = {"path": str(path.relative_to(root)), "options": options}
            (unfinished / MADE_OF).write_text(json.dumps(made_of), encoding="utf-8")
            unfinished.chmod(0o755)
            os.rename(unfinished, place / key)
        except OSError as error:
            if not (place / key / "index.json").is_file():  # another process has made the same index
                raise InputError(
                    f"the index of {path} cannot be written to {place} ({error}); free disk space"
                ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        index = load(place / key)
        drop_outdated(place, root)
        return index
    raise InputError(
        f"the index of {path} cannot be saved: neither {places[0]} nor {places[1]} is writable; make one writable"
    )


def cache_home() -> Path:
    """The cache folder of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()


def load(folder: Path) -> TextIndex:
    """Load an index and lock it: no process deletes it until this process and its forks have ended."""
    with contextlib.suppress(OSError):  # an index of an earlier version, which is never deleted, or no lock support
        if folder not in _used:
            handle = os.open(folder / MADE_OF, os.O_RDONLY)
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_SH)
            _used[folder] = handle
    return TextIndex(folder, **json.loads((folder / "index.json").read_text(encoding="utf-8")))


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


def drop_outdated(place: Path, root: Path) -> None:
    """Delete indices of files that have changed or disappeared, except those that a process uses."""
    for path in place.glob(f"*/{MADE_OF}"):
        if path.parent.name.startswith(UNFINISHED):  # another process is about to rename it
            continue
        with (
            contextlib.suppress(OSError),
            open(path, encoding="utf-8") as file,
        ):  # in use, or being deleted by another process
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made_of = json.load(file)
            try:
                current = fingerprint(root / made_of["path"], TextOptions(*made_of["options"]))
            except InputError:  # all files have disappeared
                current = None
            if path.parent.name != current:
                if not fcntl:
                    file.close()
                dropped = tempfile.mkdtemp(prefix=UNFINISHED, dir=place)
                os.rename(
                    path.parent, Path(dropped, path.parent.name)
                )  # atomic, so that no process finds a part of an index under its name
                shutil.rmtree(dropped)


def build(folder: Path, path: Path, options: TextOptions) -> None:
    """Read all files once, and write the position and the split of each document."""
    root = path if path.is_dir() else path.parent
    left_out: Counter[str] = Counter()
    first_left_out: dict[str, str] = {}
    num_documents = 0
    lowest, highest = 1.0, 0.0  # fractions
    total = sum(file.stat().st_size for file in files_of(path))
    doing, megabyte = f"reading {path.name}", 1e6
    with reporting("MB") as on_progress, open(folder / "names", "wb") as names, open(folder / "all", "wb") as rows:
        before = 0
        for file in files_of(path):
            position = names.tell()
            names.write(os.fsencode(file.relative_to(root)) + b"\n")
            for number, found in enumerate(
                documents_of(file, folder / "texts", options.column, options.documents == "block"), 1
            ):
                if found.fault:
                    left_out[found.fault] += 1
                    first_left_out.setdefault(found.fault, f"{file}, document {number}")
                    continue
                number_of_spans, share = len(found.spans), found.fraction(options.seed)
                lowest, highest = min(lowest, share), max(highest, share)
                num_documents += 1
                for i, span in enumerate(found.spans, 1):
                    rows.write(np.array((position, *span, i == number_of_spans, share), ROW).tobytes())
                if suffix(file) != ".parquet":
                    on_progress(doing, (before + found.spans[-1][0]) / megabyte, total / megabyte)
            before += file.stat().st_size
            on_progress(doing, before / megabyte, total / megabyte)
    if not num_documents:
        raise InputError(
            f"none of the documents in {path} can be used: {left_out_summary(left_out, first_left_out)}; fix them"
        )
    # As in `hold_out`: not all documents and, if they differ, at least one.
    limit = options.val_fraction and min(max(options.val_fraction, np.nextafter(lowest, 1.0)), highest)
    num_examples = divide(folder, limit)
    counted = TextIndex(folder, num_examples, num_documents, dict(left_out), first_left_out)._asdict()
    counted.pop("folder")
    (folder / "index.json").write_text(json.dumps(counted), encoding="utf-8")


def divide(folder: Path, limit: float) -> dict[str, int]:
    """Divide the rows into train and val; rows with a fraction below the limit are held out. Returns their counts."""
    counts = {"train": 0, "val": 0}
    with open(folder / "all", "rb") as every, open(folder / "train", "wb") as train, open(folder / "val", "wb") as val:
        while len(rows := np.fromfile(every, ROW, CHUNK)):
            held_out = rows["fraction"] < limit
            for name, file, part in (("train", train, rows[~held_out]), ("val", val, rows[held_out])):
                file.write(part.tobytes())
                counts[name] += len(part)
    (folder / "all").unlink()
    return counts


def left_out_summary(left_out: dict[str, int], first: dict[str, str]) -> str:
    """Format the counts of documents left out, by reason, for a message."""
    return format_reasons({reason: (count, first[reason]) for reason, count in left_out.items()})
