"""Where each document of a text corpus begins and ends, written once to files, so that no list of them is in memory."""

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
    import fcntl  # whose shared locks filelock has not
except ImportError:  # Windows, which renames no folder in which a file is open: there that is the lock
    fcntl = None

from lit_transfusion.data.sources.text_files import documents_of
from lit_transfusion.data.types import in_words
from lit_transfusion.errors import InputError
from lit_transfusion.progress import reporting
from lit_transfusion.text_reader import suffix

SUFFIXES = (".txt", ".jsonl", ".parquet")
VERSION = 1  # of what the files of an index hold
FOLDER = ".lit_transfusion"
ROW = np.dtype(
    [
        ("name", "<i8"),  # where the name of its file begins in `names`
        ("start", "<i8"),  # first byte, in the file; of a .parquet, in `texts`
        ("length", "<i8"),  # bytes
        ("complete", "<i8"),  # 0: the document goes on in the next row
        ("fraction", "<f8"),  # of what the document says, to hold out by
    ]
)
CHUNK = 1000  # rows in memory at once
UNFINISHED = "unfinished-"  # begins the name of an index that is being made, or dropped
MADE_OF = "made_of.json"  # in an index, what it is of; locked by who uses it

_used: dict[Path, int] = {}  # index → the open file whose lock this process holds until it ends


class TextOptions(NamedTuple):
    """What an index depends on beside the files."""

    documents: Literal["file", "block"]
    column: str
    val_fraction: float
    seed: int


class TextIndex(NamedTuple):
    """The files of an index, and what was counted when it was made."""

    folder: Path
    num_examples: dict[str, int]  # of train and val
    num_documents: int
    left_out: dict[str, int]  # reason → documents
    first_left_out: dict[str, str]  # reason → where

    def rows(self, part: Literal["train", "val"]) -> np.ndarray:
        """(number of examples,) rows, which stay on disk until they are read."""
        if not self.num_examples[part]:
            return np.zeros(0, ROW)
        return np.memmap(self.folder / part, ROW, "r")

    @property
    def texts(self) -> Path:
        """What the .parquet files hold, one text after the other."""
        return self.folder / "texts"

    def name(self, row: np.void) -> str:
        """The file that a row is in, relative to the corpus."""
        with open(self.folder / "names", "rb") as names:
            names.seek(int(row["name"]))
            return os.fsdecode(names.readline().rstrip(b"\n"))


def text_index(path: Path, options: TextOptions) -> TextIndex:
    """The index of a corpus: the one that is there if no file has changed, or a new one.

    It is kept in `.lit_transfusion` beside the texts, or where that cannot be written, in the user's cache.
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
            if not (place / key / "index.json").is_file():  # that of another process, which was faster
                raise InputError(f"the index of {path} cannot be made in {place}: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        index = load(place / key)
        drop_outdated(place, root)
        return index
    raise InputError(f"neither {places[0]} nor {places[1]} can be written, and the index of {path} must be somewhere")


def cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()


def load(folder: Path) -> TextIndex:
    """The index in a folder, which nobody drops before this process has ended, and those that it has forked."""
    with contextlib.suppress(OSError):  # of an earlier version, which is never dropped; or there are no locks here
        if folder not in _used:
            handle = os.open(folder / MADE_OF, os.O_RDONLY)
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_SH)
            _used[folder] = handle
    return TextIndex(folder, **json.loads((folder / "index.json").read_text(encoding="utf-8")))


def files_of(path: Path) -> Iterator[Path]:
    """The text files in a folder and the folders in it, sorted by name within each; hidden ones are passed over."""
    if path.is_file():
        yield path
        return
    for place, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(place, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and file.is_file():  # no link to nothing
                yield file


def fingerprint(path: Path, options: TextOptions) -> str:
    """Another one when a file was added, removed or changed, or an option is another."""
    root = path if path.is_dir() else path.parent
    digest = hashlib.sha256(repr((VERSION, *options)).encode())
    empty = True
    for file in files_of(path):
        status = file.stat()
        digest.update(os.fsencode(file.relative_to(root)) + f"\n{status.st_size} {status.st_mtime_ns}\n".encode())
        empty = False
    if empty:
        raise InputError(f"no texts in {path} or the folders in it; looked for {' '.join(SUFFIXES)}")
    return digest.hexdigest()[:16]


def drop_outdated(place: Path, root: Path) -> None:
    """Remove indices of files that have changed or gone since, but for those that a process uses: it goes on with what
    it began with."""
    for path in place.glob(f"*/{MADE_OF}"):
        if path.parent.name.startswith(UNFINISHED):  # another process is about to give it its name
            continue
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:  # in use, or another process drops it
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made_of = json.load(file)
            try:
                current = fingerprint(root / made_of["path"], TextOptions(*made_of["options"]))
            except InputError:  # all of them have gone
                current = None
            if path.parent.name != current:
                if not fcntl:
                    file.close()
                dropped = tempfile.mkdtemp(prefix=UNFINISHED, dir=place)
                os.rename(
                    path.parent, Path(dropped, path.parent.name)
                )  # at once: half an index must not be found under its name
                shutil.rmtree(dropped)


def build(folder: Path, path: Path, options: TextOptions) -> None:
    """Read all files once, and write down where each document is and in which part."""
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
        raise InputError(f"not one document in {path} can be used: {told(left_out, first_left_out)}")
    # Never all and, of different documents, never none, as in `hold_out`.
    limit = options.val_fraction and min(max(options.val_fraction, np.nextafter(lowest, 1.0)), highest)
    num_examples = divide(folder, limit)
    counted = TextIndex(folder, num_examples, num_documents, dict(left_out), first_left_out)._asdict()
    counted.pop("folder")
    (folder / "index.json").write_text(json.dumps(counted), encoding="utf-8")


def divide(folder: Path, limit: float) -> dict[str, int]:
    """Rows below the limit are held out."""
    counts = {"train": 0, "val": 0}
    with open(folder / "all", "rb") as every, open(folder / "train", "wb") as train, open(folder / "val", "wb") as val:
        while len(rows := np.fromfile(every, ROW, CHUNK)):
            held_out = rows["fraction"] < limit
            for name, file, part in (("train", train, rows[~held_out]), ("val", val, rows[held_out])):
                file.write(part.tobytes())
                counts[name] += len(part)
    (folder / "all").unlink()
    return counts


def told(left_out: dict[str, int], first: dict[str, str]) -> str:
    return in_words({reason: (count, first[reason]) for reason, count in left_out.items()})
