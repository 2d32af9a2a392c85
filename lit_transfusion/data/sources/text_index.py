"""Where each document of a text corpus begins and ends, written once to files, so that no list of them is in memory."""

import codecs
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from lit_transfusion.data.document import in_words
from lit_transfusion.data.sources.base import fraction
from lit_transfusion.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".parquet")
MAX_SPAN = 2**16  # bytes of a text file that are read as one example; a longer document is several
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


@dataclass
class Found:
    """A document as it is read for the index."""

    spans: list[tuple[int, int]] = field(default_factory=list)  # (start, length) in bytes, one after the other
    fault: str | None = None  # why it cannot be used
    empty: bool = True
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, start: int, text: bytes) -> None:
        """Take the bytes that follow, whole characters."""
        begin, length = self.spans[-1] if self.spans else (start, 0)
        if length and length + len(text) > MAX_SPAN:
            self.spans.append((start, len(text)))
        else:
            self.spans[-1:] = [(begin, length + len(text))]
        self.see(text)

    def see(self, text: bytes) -> None:
        """What the document says, where its spans are known already."""
        self.empty = self.empty and not text.strip()
        self._digest.update(text)
        try:
            text.decode()
        except UnicodeDecodeError:
            self.fault = "not UTF-8"

    def end(self) -> "Found":
        if self.empty and not self.fault:
            self.fault = "empty"
        return self

    def fraction(self, seed: int) -> float:
        return fraction(self._digest.hexdigest(), seed)


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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made_of = json.load(file)
            try:
                current = fingerprint(root / made_of["path"], TextOptions(*made_of["options"]))
            except InputError:  # all of them have gone
                current = None
            if path.parent.name != current:
                dropped = tempfile.mkdtemp(prefix=UNFINISHED, dir=place)
                os.rename(path.parent, dropped)  # at once: half an index must not be found under its name
                shutil.rmtree(dropped)


def build(folder: Path, path: Path, options: TextOptions) -> None:
    """Read all files once, and write down where each document is and in which part."""
    root = path if path.is_dir() else path.parent
    left_out: Counter[str] = Counter()
    first_left_out: dict[str, str] = {}
    num_documents = 0
    lowest, highest = 1.0, 0.0  # fractions
    total = sum(file.stat().st_size for file in files_of(path))
    console = Console(stderr=True)
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    with progress, open(folder / "names", "wb") as names, open(folder / "all", "wb") as rows:
        task, before = progress.add_task(f"reading {path.name}", total=total), 0
        for file in files_of(path):
            position = names.tell()
            names.write(os.fsencode(file.relative_to(root)) + b"\n")
            for number, found in enumerate(documents_of(file, folder / "texts", options), 1):
                if found.fault:
                    left_out[found.fault] += 1
                    first_left_out.setdefault(found.fault, f"{file}, document {number}")
                    continue
                number_of_spans, share = len(found.spans), found.fraction(options.seed)
                lowest, highest = min(lowest, share), max(highest, share)
                num_documents += 1
                for i, span in enumerate(found.spans, 1):
                    rows.write(np.array((position, *span, i == number_of_spans, share), ROW).tobytes())
                if file.suffix.lower() != ".parquet":
                    progress.update(task, completed=before + found.spans[-1][0])
            before += file.stat().st_size
            progress.update(task, completed=before)
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
    every = np.memmap(folder / "all", ROW, "r")
    with open(folder / "train", "wb") as train, open(folder / "val", "wb") as val:
        for start in range(0, len(every), CHUNK):
            rows = every[start : start + CHUNK]
            held_out = rows["fraction"] < limit
            for name, file, part in (("train", train, rows[~held_out]), ("val", val, rows[held_out])):
                file.write(part.tobytes())
                counts[name] += len(part)
    (folder / "all").unlink()
    return counts


def told(left_out: dict[str, int], first: dict[str, str]) -> str:
    return in_words({reason: (count, first[reason]) for reason, count in left_out.items()})


def documents_of(file: Path, texts: Path, options: TextOptions) -> Iterator[Found]:
    match file.suffix.lower():
        case ".jsonl":
            return from_jsonl(file, options.column)
        case ".parquet":
            return from_parquet(file, texts, options.column)
        case _:
            return from_text(file, options.documents == "block")


def from_text(file: Path, blocks: bool) -> Iterator[Found]:
    """The whole file, or its blocks, which blank lines divide."""
    found, in_line = Found(), False
    with open(file, "rb") as lines:
        start = len(codecs.BOM_UTF8) if lines.read(3) == codecs.BOM_UTF8 else 0
        lines.seek(start)
        while line := next_line(lines):
            if not blocks or in_line or line.strip():
                found.add(start, line)
            elif found.spans:
                yield found.end()
                found = Found()
            start, in_line = lines.tell(), not line.endswith(b"\n")
    if found.spans or not blocks:
        yield found.end()


def next_line(lines: BinaryIO) -> bytes:
    """A line, or of a very long one as much as ends between two words, or at least between two characters."""
    line = lines.readline(MAX_SPAN)
    if len(line) < MAX_SPAN or line.endswith(b"\n"):
        return line
    end = line.rfind(b" ") + 1
    if not end:
        end = len(line)
        while end > MAX_SPAN - 4 and line[end - 1] & 0b1100_0000 == 0b1000_0000:  # goes on with a character
            end -= 1
        end -= line[end - 1] >= 0b1100_0000  # begins one, which may not be whole
    lines.seek(end - len(line), os.SEEK_CUR)
    return line[:end]


def from_jsonl(file: Path, column: str) -> Iterator[Found]:
    with open(file, "rb") as lines:
        start, first = 0, True
        while line := lines.readline():
            if line.strip():
                found = Found([(start, len(line))])
                row = None
                try:
                    row = row_of(line)
                    found.see(text_in(row, column))
                except ValueError as error:
                    found.fault = str(error)
                if first and row is not None and column not in row:  # in a later line it is a fault of that line
                    raise InputError(
                        f"{file}: its first line has no field {column!r}, but {', '.join(row)}; "
                        "set column to the one that holds the text"
                    )
                first = first and row is None
                yield found.end()
            start = lines.tell()


def row_of(line: bytes) -> dict[str, Any]:
    """What a line of a .jsonl file holds.

    Raises:
        ValueError: It cannot be used. The message is a short reason that is the same for all of one kind.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except ValueError as error:
        raise ValueError("broken json") from error
    if not isinstance(row, dict):
        raise ValueError("not a json object")
    return row


def text_in(row: dict[str, Any], column: str) -> bytes:
    """The text in a row, as UTF-8; null is the empty one. Raises what `row_of` does."""
    text = row.get(column, 0)
    if not isinstance(text, str | None):
        raise ValueError(f"without a text in {column!r}")
    try:
        return (text or "").encode()
    except UnicodeEncodeError as error:  # half of a character, which JSON can write
        raise ValueError("not UTF-8") from error


def from_parquet(file: Path, texts: Path, column: str) -> Iterator[Found]:
    """Its texts are copied: to read one of them there, thousands beside it would have to be unpacked each time."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{file} needs pyarrow ({error}): pip install 'lit-transfusion[data]'") from error
    try:
        table = ParquetFile(file)
        names = table.schema_arrow.names
        if column not in names:
            raise InputError(
                f"{file} has no column {column!r}: it has {', '.join(names)}; set column to the one that holds the text"
            )
        with open(texts, "ab") as copy:
            for batch in table.iter_batches(1000, columns=[column]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str | None):
                        raise InputError(f"{file}: column {column!r} holds {type(text).__name__}, and no text")
                    content = (text or "").encode()
                    found = Found([(copy.tell(), len(content))])
                    found.see(content)
                    copy.write(content)
                    yield found.end()
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} cannot be read: {error}") from error
