"""Finds the documents in text files, and the reason for each that cannot be used."""

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lit_transfusion.data.types import TextExample
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import NOT_UTF8, UnreadableText, decode, decode_exactly, suffix

MAX_PART = 2**16  # largest number of bytes of a part of a .txt


class ScannedDocument(NamedTuple):
    """A document of a file, or the reason why it cannot be used."""

    end: int  # bytes of the file up to its end, where they are known
    examples: Iterable[TextExample] = ()  # the text in order; a .txt is read while they are iterated
    digest: str = ""  # of the text
    fault: str | None = None


def documents_of(file: Path, column: str, blocks: bool) -> Iterator[ScannedDocument]:
    """Yield the documents of a file in order.

    Args:
        file: A .txt, .jsonl or .parquet file.
        column: Column of a .parquet or field of a .jsonl that contains the text.
        blocks: Whether blank lines divide a .txt into documents.

    Raises:
        InputError: The file cannot be read or has no such column.
    """
    try:
        match suffix(file):
            case ".jsonl":
                yield from from_jsonl(file, column)
            case ".parquet":
                yield from from_parquet(file, column)
            case _:
                yield from from_text(file, blocks)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}; make it readable, or remove it") from error


def from_text(file: Path, blocks: bool) -> Iterator[ScannedDocument]:
    """Yield a .txt as one document, or each of its blocks between blank lines."""
    found, in_line = _TextScan(file), False
    with open(file, "rb") as lines:
        start = len(codecs.BOM_UTF8) if lines.read(3) == codecs.BOM_UTF8 else 0
        lines.seek(start)
        while line := next_line(lines):
            if not blocks or in_line or line.strip():
                found.add(start, line)
            elif found.spans:
                yield found.document()
                found = _TextScan(file)
            start, in_line = lines.tell(), not line.endswith(b"\n")
    if found.spans or not blocks:
        yield found.document()


class _TextScan:
    """Collects the positions of the parts of a document. Whether it is usable is known when all of it has been read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.spans: list[tuple[int, int]] = []  # (start, length) in bytes, in order
        self.fault: str | None = None
        self.empty = True
        self._digest = hashlib.sha256()

    def add(self, start: int, line: bytes) -> None:
        """Append bytes that start at `start` and contain whole characters."""
        begin, length = self.spans[-1] if self.spans else (start, 0)
        if length and length + len(line) > MAX_PART:
            self.spans.append((start, len(line)))
        else:
            self.spans[-1:] = [(begin, length + len(line))]
        self.empty = self.empty and not line.strip()
        self._digest.update(line)
        try:
            decode_exactly(line)
        except UnreadableText as error:
            self.fault = self.fault or str(error)

    def document(self) -> ScannedDocument:
        fault = self.fault or ("empty" if self.empty else None)
        end = sum(self.spans[-1]) if self.spans else 0
        return ScannedDocument(end, self._examples(), self._digest.hexdigest(), fault)

    def _examples(self) -> Iterator[TextExample]:
        with open(self.file, "rb") as file:
            for start, length in self.spans:
                file.seek(start)
                yield TextExample(file.read(length).decode(), complete=(start, length) == self.spans[-1])


def next_line(lines: BinaryIO) -> bytes:
    """Read a line. Of a very long one, read a part that ends between two words, or at least between two characters."""
    line = lines.readline(MAX_PART)
    if len(line) < MAX_PART or line.endswith(b"\n"):
        return line
    end = line.rfind(b" ") + 1
    if not end:
        end = len(line)
        while end > MAX_PART - 4 and line[end - 1] & 0b1100_0000 == 0b1000_0000:  # inside a character
            end -= 1
        end -= line[end - 1] >= 0b1100_0000  # start of a character that may be incomplete
    lines.seek(end - len(line), os.SEEK_CUR)
    return line[:end]


def from_jsonl(file: Path, column: str) -> Iterator[ScannedDocument]:
    """Yield one document for each nonempty line of a .jsonl."""
    end, row = 0, None
    with open(file, "rb") as lines:
        for line in lines:
            end += len(line)
            if not line.strip():
                continue
            first = row is None  # on a later line, a missing field is a fault of that line
            try:
                row = row_of(line)
                if first and column not in row:
                    raise InputError(
                        f"{file}: the first line has no field {column!r}, only {', '.join(row)}; "
                        "set column to the one with the text"
                    )
                yield whole(text_in(row, column), end)
            except ValueError as error:
                yield ScannedDocument(end, fault=str(error))


def whole(text: str | None, end: int = 0) -> ScannedDocument:
    """The document of a text in one part. Raises ValueError if it cannot be encoded."""
    try:
        content = (text or "").encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can contain
        raise ValueError(NOT_UTF8) from error
    fault = None if content.strip() else "empty"
    return ScannedDocument(end, [TextExample(text or "")], hashlib.sha256(content).hexdigest(), fault)


def row_of(line: bytes) -> dict[str, Any]:
    """Parse a line of a .jsonl file.

    Raises:
        ValueError: The line cannot be used. The message is a short reason, the same for all lines of one kind.
    """
    try:
        row = json.loads(decode(line))
    except json.JSONDecodeError as error:
        raise ValueError("broken json") from error
    if not isinstance(row, dict):
        raise ValueError("not a json object")
    return row


def text_in(row: dict[str, Any], column: str) -> str | None:
    """The text of a row; null is the empty text. Raises ValueError like `row_of`."""
    text = row.get(column, 0)
    if not isinstance(text, str | None):
        raise ValueError(f"without a text in {column!r}")
    return text


def from_parquet(file: Path, column: str) -> Iterator[ScannedDocument]:
    """Yield one document for each row of a .parquet."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(file)
        names = table.schema_arrow.names
        if column not in names:
            raise InputError(
                f"{file} has no column {column!r}, only {', '.join(names)}; set column to the one with the text"
            )
        for batch in table.iter_batches(1000, columns=[column]):
            for value in batch.column(0):
                try:
                    text = value.as_py()
                except UnicodeDecodeError:  # pyarrow does not check the encoding of texts
                    yield ScannedDocument(0, fault=NOT_UTF8)
                    continue
                if not isinstance(text, str | None):
                    raise InputError(
                        f"{file}: column {column!r} contains {type(text).__name__} instead of text; set column to "
                        "the one with the text"
                    )
                yield whole(text)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} cannot be read ({error}); write it again") from error
