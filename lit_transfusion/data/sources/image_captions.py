"""A folder of pictures with captions beside them or in a metadata file."""

import copy
import csv
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_transfusion.data.document import Example, Skipped
from lit_transfusion.data.images import read_image
from lit_transfusion.data.sources.base import Source
from lit_transfusion.errors import InputError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMNS = ("file_name", "file", "image", "path")  # the first that is there counts
CAPTION_COLUMNS = ("caption", "text", "captions")

log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    name: str  # of the picture, relative to the folder, with forward slashes
    captions: tuple[str, ...]


class ImageCaptions(Source):
    """Your own pictures: a folder, searched with all folders in it, that holds captions in one of two ways.

    - `cat.txt` beside `cat.jpg`: each line that is not empty is one caption.
    - `metadata.csv` or `metadata.jsonl` with a column `file_name` (or `file`, `image`, `path`) relative to the folder,
      and a column `caption` (or `text`, `captions`); in jsonl it may be a list. A file named in several rows has
      several captions. If there is such a file, `.txt` files are not read.

    Hidden files and links to folders are passed over. Pictures without a caption are left out, with a warning.
    The middle square of each picture is resized to `image_size`.

    Args:
        path: The folder.
        image_size: Side of the square pictures it yields, in pixels (set by the data module's `image_size`).
        val_fraction: Share of the pictures that is held out, in [0, 1); at least one picture unless it is 0. Which
            ones depends on their names and `seed` alone, so that new pictures do not move the old ones.
        metadata: The metadata file, if its name is another: relative to the folder, or absolute.
        seed: Chooses another set of pictures to hold out.
    """

    def __init__(
        self,
        path: str = "",
        image_size: int = 64,
        val_fraction: float = 0.05,
        metadata: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size)
        self.path = path
        self.val_fraction = val_fraction
        self.metadata = metadata
        self.seed = seed
        if not path:
            raise InputError("ImageCaptions has no path: set path to a folder of pictures with captions")
        if not 0 <= val_fraction < 1:
            raise InputError(f"ImageCaptions: val_fraction is {val_fraction}; set it to at least 0 and less than 1")
        self._folder = Path(path).expanduser()
        self._entries = _find_entries(self._folder, metadata)

    def split(self, name: Literal["train", "val"]) -> "ImageCaptions":
        ranked = sorted(self._entries, key=lambda entry: _fraction(entry.name, self.seed))
        num_val = sum(_fraction(entry.name, self.seed) < self.val_fraction for entry in ranked)
        if self.val_fraction > 0:
            num_val = min(max(num_val, 1), len(ranked) - 1)  # neither part empty, if there are two pictures
        part = copy.copy(self)
        part._entries = sorted(ranked[:num_val] if name == "val" else ranked[num_val:])
        return part

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example | Skipped:
        entry = self._entries[index]
        file = self._folder / entry.name
        try:
            return Example(read_image(file, self.image_size), entry.captions)
        except ValueError as error:
            return Skipped(str(file), str(error))

    def captions(self) -> list[str]:
        return [caption for entry in self._entries for caption in entry.captions]


def _fraction(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, evenly spread over names."""
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _find_entries(folder: Path, metadata: str | None) -> list[_Entry]:
    """The pictures of a folder that have captions, sorted by name. Warns of those that have none."""
    if not folder.exists():
        raise InputError(f"no such folder: {folder}; set path to a folder of pictures with captions")
    if not folder.is_dir():
        raise InputError(f"not a folder: {folder}; set path to the folder that the pictures are in")

    files = _list_files(folder)
    pictures = {name for name in files if name.lower().endswith(PICTURE_SUFFIXES)}
    metadata_file = _find_metadata(folder, metadata)
    if not pictures and not metadata_file:
        raise InputError(f"no pictures in {folder} or the folders in it; looked for {' '.join(PICTURE_SUFFIXES)}")

    left_out: dict[str, list[str]] = defaultdict(list)  # reason → names
    if metadata_file:
        captions_of = _read_metadata(metadata_file)
        # Whatever its suffix, a file that is named is taken for a picture.
        missing = {name for name in captions_of if name not in pictures and not os.path.isfile(folder / name)}
        if captions_of and len(missing) == len(captions_of):
            raise InputError(
                f"none of the {len(missing)} files that {metadata_file} names is there "
                f"(first: {folder / min(missing)}); names in it are relative to {folder}"
            )
        pictures = (pictures | captions_of.keys()) - missing
        if missing:
            left_out[f"named in {metadata_file.name} but not there"] = sorted(missing)
    else:
        captions_of = _read_text_files(folder, files, left_out)

    entries = []
    for name in sorted(pictures.difference(*left_out.values())):
        if captions_of.get(name):
            entries.append(_Entry(name, tuple(captions_of[name])))
        else:
            left_out["without a caption"].append(name)
    reasons = ", ".join(f"{len(names)} {reason} (first: {names[0]})" for reason, names in left_out.items())
    if not entries:
        raise InputError(
            f"no picture in {folder} has a caption: {reasons or 'none is named in ' + str(metadata_file)}; "
            "put name.txt beside name.jpg with one caption a line, or a metadata.csv or metadata.jsonl in the folder "
            "with columns file_name and caption"
        )
    if left_out:
        num_left_out = sum(map(len, left_out.values()))
        log.warning("%s: %d pictures used, %d left out: %s", folder, len(entries), num_left_out, reasons)
    return entries


def _list_files(folder: Path) -> list[str]:
    """Names of all files in a folder and the folders in it, relative to it, with forward slashes."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk goes on into what is left here
        names += [Path(place, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return names


def _find_metadata(folder: Path, metadata: str | None) -> Path | None:
    if metadata is not None:
        file = folder / Path(metadata).expanduser()
        if not file.is_file():
            raise InputError(f"no such file: {file}; set metadata to a file in {folder}, or to an absolute path")
        if file.suffix.lower() not in (".csv", ".jsonl"):
            raise InputError(f"{file} is neither .csv nor .jsonl; set metadata to a file of one of these kinds")
        return file
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} holds both {' and '.join(METADATA_FILES)}; set metadata to the one to use")
    return found[0] if found else None


def _read_text_files(folder: Path, files: list[str], left_out: dict[str, list[str]]) -> dict[str, list[str]]:
    """Captions by picture, from the .txt beside it. Puts pictures whose .txt cannot be read on the list `left_out`."""
    text_files = {os.path.splitext(name)[0]: name for name in files if name.lower().endswith(".txt")}
    captions_of = {}
    for name in sorted(files):
        stem = os.path.splitext(name)[0]
        if not name.lower().endswith(PICTURE_SUFFIXES) or stem not in text_files:
            continue
        try:
            lines = (folder / text_files[stem]).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            left_out["with a caption that is not UTF-8"].append(name)
        else:
            captions_of[name] = _clean(lines)
    return captions_of


def _read_metadata(file: Path) -> dict[str, list[str]]:
    """Captions by picture, from all rows that name it."""
    captions_of: dict[str, list[str]] = defaultdict(list)
    for line, row in _rows(file):
        name = _column(row, FILE_COLUMNS, file, line)
        captions = _column(row, CAPTION_COLUMNS, file, line)
        captions = captions if isinstance(captions, list) else [captions]
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{file}, line {line}: the name of the picture is {name!r}; give the name of a file")
        if not all(isinstance(caption, str | None) for caption in captions):
            raise InputError(f"{file}, line {line}: a caption is no text: {captions!r:.100}; put it in quotes")
        captions_of[Path(name.strip()).as_posix()] += _clean(captions)
    return captions_of


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .csv or .jsonl file with the lines they (end) on, counted from 1."""
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
                    "put a caption that holds a comma in double quotes"
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
            raise InputError(f'{file}, line {number}: not a json object; write {{"file_name": …, "caption": …}}')
        yield number, row


def _column(row: dict[str, Any], wanted: tuple[str, ...], file: Path, line: int) -> Any:
    by_name = {name.strip().lower(): value for name, value in row.items()}
    for name in wanted:
        if name in by_name:
            return by_name[name]
    columns = ", ".join(row)
    raise InputError(f"{file}, line {line}: no column {wanted[0]} (or {', '.join(wanted[1:])}); it has {columns}")


def _clean(captions: list[str | None]) -> list[str]:
    """Each on one line with single spaces; empty ones dropped."""
    return [" ".join(caption.split()) for caption in captions if caption and caption.strip()]
