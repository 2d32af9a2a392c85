"""Metadata files: tables in .csv, .jsonl or .parquet that name pictures and say something of them."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_transfusion.errors import InputError

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SUFFIXES = (".csv", ".jsonl", ".parquet")


def find_metadata(folder: Path, metadata: str | None) -> Path | None:
    """The file that is named, relative to the folder or absolute, or else the one in the folder, if there is one."""
    if metadata is not None:
        file = folder / Path(metadata).expanduser()
        if not file.is_file():
            raise InputError(f"no such file: {file}; set metadata to a file in {folder}, or to an absolute path")
        if file.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{file} is neither .csv nor .jsonl nor .parquet; set metadata to a file of one of these kinds"
            )
        return file
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} holds both {' and '.join(f.name for f in found)}; set metadata to the one to use")
    return found[0] if found else None


def rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with the lines they (end) on, or with their numbers in a .parquet, counted from 1."""
    if file.suffix.lower() == ".parquet":
        yield from _parquet_rows(file)
        return
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            if file.suffix.lower() == ".csv":
                yield from _csv_rows(lines, file)
            else:
                yield from _jsonl_rows(lines, file)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text; save it as UTF-8") from error


def _csv_rows(lines: Iterator[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        for values in reader:
            if values and len(values) != len(header):
                raise InputError(
                    f"{file}, line {reader.line_num}: {len(values)} columns where the first line has {len(header)}; "
                    "put text that holds a comma in double quotes"
                )
            if values:
                yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: broken csv ({error}); mend or remove the line") from error


def _jsonl_rows(lines: Iterator[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{file}, line {number}: broken json ({error.msg}); mend or remove the line") from error
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
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} cannot be read as parquet ({error})".split("\n")[0]) from None


def column(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> Any:
    """The value in the first of the `wanted` columns that is there."""
    by_name = {name.strip().lower(): value for name, value in row.items()}
    for name in wanted:
        if name in by_name:
            return by_name[name]
    columns = ", ".join(row)
    raise InputError(f"{file}, line {line}: no column {wanted[0]} (or {', '.join(wanted[1:])}); it has {columns}")


def texts_in(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> list[str]:
    """The text in a column, or the list of texts that it may hold in .jsonl; empty ones dropped."""
    value = column(row, wanted, file, line)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str | None) for text in texts):
        raise InputError(f"{file}, line {line}: the {wanted[0]} is no text: {texts!r:.100}; put it in quotes")
    return clean(texts)


def name_in(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> str:
    """The name of a picture, with forward slashes."""
    name = column(row, wanted, file, line)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{file}, line {line}: the name of the picture is {name!r:.100}; give the name of a file")
    return Path(name.strip()).as_posix()


def clean(texts: list[str | None]) -> list[str]:
    """Each on one line with single spaces; empty ones dropped."""
    return [" ".join(text.split()) for text in texts if text and text.strip()]
