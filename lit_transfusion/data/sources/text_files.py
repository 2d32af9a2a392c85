"""The documents in text files: where each begins and ends, and why one cannot be used."""

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

MAX_SPAN = 2**16  # bytes of a text file that are read as one example; a longer document is several


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
        try:
            decode_exactly(text)
        except UnreadableText as error:
            self.fault = self.fault or str(error)
        self.see(text)

    def see(self, text: bytes) -> None:
        """What the document says, where its spans are known already."""
        self.empty = self.empty and not text.strip()
        self._digest.update(text)
        try:
            text.decode()
        except UnicodeDecodeError:
            self.fault = self.fault or NOT_UTF8

    def end(self) -> "Found":
        if self.empty and not self.fault:
            self.fault = "empty"
        return self

    def fraction(self, seed: int) -> float:
        return fraction(self._digest.hexdigest(), seed)


def documents_of(file: Path, texts: Path, column: str, blocks: bool) -> Iterator[Found]:
    """One after the other.

    Args:
        file: A .txt, .jsonl or .parquet file.
        texts: Where the texts of a .parquet are copied to, behind what is there.
        column: That holds the texts of a .jsonl or .parquet.
        blocks: Whether blank lines divide a .txt into documents.
    """
    match suffix(file):
        case ".jsonl":
            return from_jsonl(file, column)
        case ".parquet":
            return from_parquet(file, texts, column)
        case _:
            return from_text(file, blocks)


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
        row = json.loads(decode(line))
    except json.JSONDecodeError as error:
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
        raise ValueError(NOT_UTF8) from error


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
                for value in batch.column(0):
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError:  # pyarrow does not check what a file calls a text
                        yield Found(fault=NOT_UTF8).end()
                        continue
                    if not isinstance(text, str | None):
                        raise InputError(f"{file}: column {column!r} holds {type(text).__name__}, and no text")
                    content = (text or "").encode()
                    found = Found([(copy.tell(), len(content))])
                    found.see(content)
                    copy.write(content)
                    yield found.end()
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} cannot be read: {error}") from error
