"""Reads metadata files: .csv, .tsv, .jsonl or .parquet tables with one row for each picture or edit."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import NOT_UTF8, stream_lines, suffix

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
METADATA_FILES = tuple(f"metadata{suffix}" for suffix in SUFFIXES)
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}  # of columns in .csv


def find_metadata(folder: Path, metadata: str | None) -> Path | None:
    """The file `metadata`, relative to the folder or absolute, or else the one in the folder, or None."""
    if metadata is not None:
        file = folder / Path(metadata).expanduser()
        if not file.is_file():
            raise InputError(f"no such file: {file}; set metadata to a file in {folder}, or to an absolute path")
        if suffix(file) not in SUFFIXES:
            raise InputError(
                f"{file} is neither .csv nor .tsv nor .jsonl nor .parquet; set metadata to a file of one of these types"
            )
        return file
    found = sorted(file for file in folder.iterdir() if file.name.lower() in METADATA_FILES and file.is_file())
    if len(found) > 1:
        raise InputError(f"{folder} contains {' and '.join(f.name for f in found)}; set metadata to the one to use")
    return found[0] if found else None


def rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file, each with its first line (in a .parquet, its row number), counted from 1."""
    match suffix(file):
        case ".parquet":
            yield from _parquet_rows(file)
        case ".csv" | ".tsv":
            yield from _csv_rows(stream_lines(file), file)
        case _:
            yield from _jsonl_rows(stream_lines(file), file)


def _csv_rows(lines: Iterator[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of a .csv from people or spreadsheets. The first line decides which of `SEPARATORS` is used."""
    before, first = 0, ""  # number of lines before the header, and the header
    for first in lines:
        if first.strip() and not re.fullmatch(r'"?sep=.*', first.strip(), re.IGNORECASE):  # a line that Excel writes
            break
        before += 1
    separator = _separator(first)
    reader = csv.reader(
        _tidy(chain([first], lines), separator), delimiter=separator, skipinitialspace=True, strict=True
    )
    header: list[str] | None = None
    line = before
    try:
        while True:
            line = before + reader.line_num + 1
            values = next(reader)
            if not any(value.strip() for value in values):  # a blank line, or only separators
                continue
            if header is None:
                header = _header(values, file, line)
                continue
            while len(values) > len(header) and not values[-1].strip():
                values.pop()
            if len(values) != len(header):
                raise InputError(
                    f"{file}, line {line}: {len(values)} columns but the header has {len(header)} "
                    f"({', '.join(header)}); put text that contains {SEPARATORS[separator]} in double quotes"
                )
            yield line, dict(zip(header, values, strict=True))
    except StopIteration:
        return
    except csv.Error as error:
        raise InputError(
            f"{file}, line {line}: broken csv ({error}); close each double quote, and write a double quote inside "
            'quoted text twice ("")'
        ) from error


def _separator(header: str) -> str:
    """The separator that gives most columns in the header; among equals, the one with fewest separators in a column."""

    def score(separator: str) -> tuple[int, int]:
        columns = next(csv.reader([header.strip(" \r\n")], delimiter=separator, skipinitialspace=True), [])
        return len(columns), -sum(any(other in column for other in SEPARATORS) for column in columns)

    return max(SEPARATORS, key=score)  # the first of equals


def _tidy(lines: Iterable[str], separator: str) -> Iterator[str]:
    """Remove spaces after quotes and at line ends, which are errors for `csv`."""
    behind_quote = re.compile(f'" +(?={re.escape(separator)})')
    for line in lines:
        yield behind_quote.sub('"', line.rstrip(" \r\n")) + "\n"


def _header(values: list[str], file: Path, line: int) -> list[str]:
    names = [value.strip() for value in values]
    while not names[-1]:  # empty columns that some spreadsheets add
        names.pop()
    twice = [name for name, count in Counter(name.lower() for name in names if name).items() if count > 1]
    if twice:
        raise InputError(f"{file}, line {line}: several columns are named {twice[0]}; rename all but one")
    return names


def _jsonl_rows(lines: Iterator[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{file}, line {number}: broken json ({error.msg}); fix or remove the line") from error
        if not isinstance(row, dict):
            raise InputError(f'{file}, line {number}: not a json object; write {{"column": "text", …}}')
        yield number, row


def _parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        number = 0
        for batch in ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except UnicodeDecodeError:  # pyarrow does not check the encoding of texts
        raise InputError(f"{file} contains text that is {NOT_UTF8}; write it again as UTF-8") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} cannot be read as parquet ({error})".split("\n")[0] + "; write it again") from None


def column(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> tuple[str, Any]:
    """Name and value of the first existing column in `wanted`."""
    by_name = {name.strip().lower(): (name, value) for name, value in row.items()}
    for name in wanted:
        if name in by_name:
            return by_name[name]
    columns = ", ".join(row)
    raise InputError(
        f"{file}, line {line}: no column {wanted[0]} (or {', '.join(wanted[1:])}); it has {columns}; rename one"
    )


def texts_in(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> list[str]:
    """The nonempty texts in a column, which contains a text or, in .jsonl and .parquet, a list of texts."""
    name, value = column(row, wanted, file, line)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str | None) for text in texts):
        raise InputError(f"{file}, line {line}, column {name}: {texts!r:.100} is not a text; put it in quotes")
    return clean(texts)


def name_in(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> str:
    """The name of a picture as written in a row. `PictureNames` finds its file."""
    name, value = column(row, wanted, file, line)
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{file}, line {line}, column {name}: the name of the picture is {value!r:.100}; write the name of a file"
        )
    return value.strip()


def clean(texts: list[str | None]) -> list[str]:
    """Put each text on one line with single spaces. Empty texts are dropped."""
    return [" ".join(text.split()) for text in texts if text and text.strip()]
