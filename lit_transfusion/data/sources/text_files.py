"""Finds the documents in text files: their positions, or the reason why one cannot be used."""

import codecs
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lit_transfusion.data.sources.base import fraction
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import NOT_UTF8, UnreadableText, decode, decode_exactly, suffix

MAX_SPAN = 2**16  # largest number of bytes of one example; a longer document becomes several


@dataclass
class ScannedDocument:
    """A document with its position, as read for the index."""

    spans: list[tuple[int, int]] = field(default_factory=list)  # (start, length) in bytes, in order
    fault: str | None = None  # the reason why it cannot be used
    empty: bool = True
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, start: int, text: bytes) -> None:
        """Append bytes that start at `start` and contain whole characters."""
        begin, length = self.spans[-1] if self.spans else (start, 0)
        if length and length + len(text) > MAX_SPAN:
            self.spans.append((start, len(text)))
        else:
            self.spans[-1:] = [(begin, length + len(text))]
        try:
            decode_exactly(text)
        except UnreadableText as error:
            self.fault = self.fault or str(error)
        self.update_digest(text)

    def update_digest(self, text: bytes) -> None:
        """Update digest, emptiness and fault with a part of the text."""
        self.empty = self.empty and not text.strip()
        self._digest.update(text)
        try:
            text.decode()
        except UnicodeDecodeError:
            self.fault = self.fault or NOT_UTF8

    def finish(self) -> "ScannedDocument":
        """Mark an empty document as a fault, and return the document."""
        if self.empty and not self.fault:
            self.fault = "empty"
        return self

    def fraction(self, seed: int) -> float:
        """A hash of the text and `seed` in [0, 1), to hold out by."""
        return fraction(self._digest.hexdigest(), seed)


def documents_of(file: Path, texts: Path, column: str, blocks: bool) -> Iterator[ScannedDocument]:
    """Yield the documents of a file in order.

    Args:
        file: A .txt, .jsonl or .parquet file.
        texts: File to which the texts of a .parquet are appended.
        column: Column of a .parquet or field of a .jsonl that contains the text.
        blocks: Whether blank lines divide a .txt into documents.

    Raises:
        InputError: The file cannot be read or has no such column.
    """
    match suffix(file):
        case ".jsonl":
            return from_jsonl(file, column)
        case ".parquet":
            return from_parquet(file, texts, column)
        case _:
            return from_text(file, blocks)


def from_text(file: Path, blocks: bool) -> Iterator[ScannedDocument]:
    """Yield a .txt as one document, or each of its blocks between blank lines."""
    found, in_line = ScannedDocument(), False
    with open(file, "rb") as lines:
        start = len(codecs.BOM_UTF8) if lines.read(3) == codecs.BOM_UTF8 else 0
        lines.seek(start)
        while line := next_line(lines):
            if not blocks or in_line or line.strip():
                found.add(start, line)
            elif found.spans:
                yield found.finish()
                found = ScannedDocument()
            start, in_line = lines.tell(), not line.endswith(b"\n")
    if found.spans or not blocks:
        yield found.finish()


def next_line(lines: BinaryIO) -> bytes:
    """Read a line. Of a very long one, read a part that ends between two words, or at least between two characters."""
    line = lines.readline(MAX_SPAN)
    if len(line) < MAX_SPAN or line.endswith(b"\n"):
        return line
    end = line.rfind(b" ") + 1
    if not end:
        end = len(line)
        while end > MAX_SPAN - 4 and line[end - 1] & 0b1100_0000 == 0b1000_0000:  # inside a character
            end -= 1
        end -= line[end - 1] >= 0b1100_0000  # start of a character that may be incomplete
    lines.seek(end - len(line), os.SEEK_CUR)
    return line[:end]


def from_jsonl(file: Path, column: str) -> Iterator[ScannedDocument]:
    """Yield one document for each nonempty line of a .jsonl."""
    with open(file, "rb") as lines:
        start, first = 0, True
        while line := lines.readline():
            if line.strip():
                found = ScannedDocument([(start, len(line))])
                row = None
                try:
                    row = row_of(line)
                    found.update_digest(text_in(row, column))
                except ValueError as error:
                    found.fault = str(error)
                if first and row is not None and column not in row:  # on a later line, it is a fault of that line
                    raise InputError(
                        f"{file}: the first line has no field {column!r}, only {', '.join(row)}; "
                        "set column to the one with the text"
                    )
                first = first and row is None
                yield found.finish()
            start = lines.tell()


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


def text_in(row: dict[str, Any], column: str) -> bytes:
    """The text of a row as UTF-8; null is the empty text. Raises ValueError like `row_of`."""
    text = row.get(column, 0)
    if not isinstance(text, str | None):
        raise ValueError(f"without a text in {column!r}")
    try:
        return (text or "").encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can contain
        raise ValueError(NOT_UTF8) from error


def from_parquet(file: Path, texts: Path, column: str) -> Iterator[ScannedDocument]:
    """Yield the documents of a .parquet and copy their texts, because reading one text there unpacks thousands."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{file} needs pyarrow ({error}); pip install 'lit-transfusion[data]'") from error
    try:
        table = ParquetFile(file)
        names = table.schema_arrow.names
        if column not in names:
            raise InputError(
                f"{file} has no column {column!r}, only {', '.join(names)}; set column to the one with the text"
            )
        with open(texts, "ab") as copy:
            for batch in table.iter_batches(1000, columns=[column]):
                for value in batch.column(0):
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError:  # pyarrow does not check the encoding of texts
                        yield ScannedDocument(fault=NOT_UTF8).finish()
                        continue
                    if not isinstance(text, str | None):
                        raise InputError(
                            f"{file}: column {column!r} contains {type(text).__name__} instead of text; set column to "
                            "the one with the text"
                        )
                    content = (text or "").encode()
                    found = ScannedDocument([(copy.tell(), len(content))])
                    found.update_digest(content)
                    copy.write(content)
                    yield found.finish()
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} cannot be read ({error}); write it again") from error
