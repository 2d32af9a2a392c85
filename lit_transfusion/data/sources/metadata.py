"""Metadata files: tables in .csv, .tsv, .jsonl or .parquet with a row for each picture or edit."""

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
    """The file that is named, relative to the folder or absolute, or else the one in the folder, if there is one."""
    if metadata is not None:
        file = folder / Path(metadata).expanduser()
        if not file.is_file():
            raise InputError(f"no such file: {file}; set metadata to a file in {folder}, or to an absolute path")
        if suffix(file) not in SUFFIXES:
            raise InputError(
                f"{file} is neither .csv nor .tsv nor .jsonl nor .parquet; set metadata to a file of one of these kinds"
            )
        return file
    found = sorted(file for file in folder.iterdir() if file.name.lower() in METADATA_FILES and file.is_file())
    if len(found) > 1:
        raise InputError(f"{folder} holds both {' and '.join(f.name for f in found)}; set metadata to the one to use")
    return found[0] if found else None


def rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with the lines they begin on, or with their numbers in a .parquet, counted from 1."""
    match suffix(file):
        case ".parquet":
            yield from _parquet_rows(file)
        case ".csv" | ".tsv":
            yield from _csv_rows(stream_lines(file), file)
        case _:
            yield from _jsonl_rows(stream_lines(file), file)


def _csv_rows(lines: Iterator[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as people and spreadsheets write them, with any of `SEPARATORS`, which the first line decides."""
    before, first = 0, ""  # lines before the first one that says something, and that one
    for first in lines:
        if first.strip() and not re.fullmatch(r'"?sep=.*', first.strip(), re.IGNORECASE):  # Excel's own
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
            if not any(value.strip() for value in values):  # a blank line, or one of separators alone
                continue
            if header is None:
                header = _header(values, file, line)
                continue
            while len(values) > len(header) and not values[-1].strip():
                values.pop()
            if len(values) != len(header):
                raise InputError(
                    f"{file}, line {line}: {len(values)} columns where the first line has {len(header)} "
                    f"({', '.join(header)}); put text that holds {SEPARATORS[separator]} in double quotes"
                )
            yield line, dict(zip(header, values, strict=True))
    except StopIteration:
        return
    except csv.Error as error:
        raise InputError(
            f"{file}, line {line}: broken csv ({error}); close each double quote, and write one that belongs to a "
            'quoted text twice ("")'
        ) from error


def _separator(header: str) -> str:
    """What makes most columns of the first line, and the cleanest of these."""

    def score(separator: str) -> tuple[int, int]:
        columns = next(csv.reader([header.strip(" \r\n")], delimiter=separator, skipinitialspace=True), [])
        return len(columns), -sum(any(other in column for other in SEPARATORS) for column in columns)

    return max(SEPARATORS, key=score)  # of equal ones, the first


def _tidy(lines: Iterable[str], separator: str) -> Iterator[str]:
    """Lines without the spaces behind a quote and at their ends, which `csv` takes for errors."""
    behind_quote = re.compile(f'" +(?={re.escape(separator)})')
    for line in lines:
        yield behind_quote.sub('"', line.rstrip(" \r\n")) + "\n"


def _header(values: list[str], file: Path, line: int) -> list[str]:
    names = [value.strip() for value in values]
    while not names[-1]:  # which some spreadsheets add
        names.pop()
    twice = [name for name, count in Counter(name.lower() for name in names if name).items() if count > 1]
    if twice:
        raise InputError(f"{file}, line {line}: there are several columns {twice[0]}; rename all but one")
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
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(f'{file} needs the package pyarrow: pip install -e ".[data]"') from None
    try:
        number = 0
        for batch in ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except UnicodeDecodeError:  # pyarrow does not check what a file calls a text
        raise InputError(f"{file} contains text that is {NOT_UTF8}; write it again as UTF-8") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} cannot be read as parquet ({error})".split("\n")[0]) from None


def column(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> tuple[str, Any]:
    """Name and value of the first of the `wanted` columns that is there."""
    by_name = {name.strip().lower(): (name, value) for name, value in row.items()}
    for name in wanted:
        if name in by_name:
            return by_name[name]
    columns = ", ".join(row)
    raise InputError(f"{file}, line {line}: no column {wanted[0]} (or {', '.join(wanted[1:])}); it has {columns}")


def texts_in(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> list[str]:
    """The text in a column, or the list of texts that it may hold in .jsonl; empty ones dropped."""
    name, value = column(row, wanted, file, line)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str | None) for text in texts):
        raise InputError(f"{file}, line {line}, column {name}: {texts!r:.100} is not a text; put it in quotes")
    return clean(texts)


def name_in(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> str:
    """The name of a picture as it is written there, which `PictureNames` finds."""
    name, value = column(row, wanted, file, line)
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{file}, line {line}, column {name}: the name of the picture is {value!r:.100}; give the name of a file"
        )
    return value.strip()


def clean(texts: list[str | None]) -> list[str]:
    """Each on one line with single spaces; empty ones dropped."""
    return [" ".join(text.split()) for text in texts if text and text.strip()]
