"""A folder of pictures with captions beside them or in a metadata file."""

import copy
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

from lit_transfusion.data.document import Example, Skipped, in_words
from lit_transfusion.data.images import read_image
from lit_transfusion.data.sources.base import Source, digest, hold_out
from lit_transfusion.data.sources.metadata import clean, find_metadata, name_in, rows, texts_in
from lit_transfusion.errors import InputError
from lit_transfusion.wording import counted

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
FILE_COLUMNS = ("file_name", "file", "image", "path")  # the first that is there counts
CAPTION_COLUMNS = ("caption", "text", "captions")

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A picture of a folder that has captions."""

    name: str  # of the picture, relative to the folder, with forward slashes
    captions: tuple[str, ...]


class ImageCaptions(Source):
    """Your own pictures: a folder, searched with all folders in it, that holds captions in one of two ways.

    - `cat.txt` beside `cat.jpg`: each line that is not empty is one caption.
    - `metadata.csv`, `.jsonl` or `.parquet` with a column `file_name` (or `file`, `image`, `path`) relative to the
      folder, and a column `caption` (or `text`, `captions`); but in csv it may be a list. A file named in several rows
      has several captions. If there is such a file, `.txt` files are not read.

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
        self._entries, left_out = find_entries(self._folder, metadata)
        if left_out:
            count, used = sum(map(len, left_out.values())), counted(len(self._entries), "picture")
            log.warning("%s: %s used, %d left out: %s", self._folder, used, count, listed(left_out))

    def split(self, name: Literal["train", "val"]) -> "ImageCaptions":
        held_out = hold_out((entry.name for entry in self._entries), self.val_fraction, self.seed)
        part = copy.copy(self)
        part._entries = [entry for entry in self._entries if (entry.name in held_out) == (name == "val")]
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

    def fingerprint(self) -> str:
        """Of names and captions: to ask for the size of each file takes long where they are many."""
        return digest(self._entries)

    def captions(self) -> list[str]:
        return [caption for entry in self._entries for caption in entry.captions]


def find_entries(folder: Path, metadata: str | None) -> tuple[list[Entry], dict[str, list[str]]]:
    """The pictures of a folder that have captions, sorted by name; and the names of those left out, by reason."""
    if not folder.exists():
        raise InputError(f"no such folder: {folder}; set path to a folder of pictures with captions")
    if not folder.is_dir():
        raise InputError(f"not a folder: {folder}; set path to the folder that the pictures are in")

    files = _list_files(folder)
    pictures = {name for name in files if name.lower().endswith(PICTURE_SUFFIXES)}
    metadata_file = find_metadata(folder, metadata)
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
            entries.append(Entry(name, tuple(captions_of[name])))
        else:
            left_out["without a caption"].append(name)
    if not entries:
        raise InputError(
            f"no picture in {folder} has a caption: {listed(left_out) or 'none is named in ' + str(metadata_file)}; "
            "put name.txt beside name.jpg with one caption a line, or a metadata.csv or metadata.jsonl in the folder "
            "with columns file_name and caption"
        )
    return entries, left_out


def listed(left_out: dict[str, list[str]]) -> str:
    return in_words({reason: (len(names), names[0]) for reason, names in left_out.items()})


def _list_files(folder: Path) -> list[str]:
    """Names of all files in a folder and the folders in it, relative to it, with forward slashes."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk goes on into what is left here
        names += [Path(place, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return names


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
            captions_of[name] = clean(lines)
    return captions_of


def _read_metadata(file: Path) -> dict[str, list[str]]:
    """Captions by picture, from all rows that name it."""
    captions_of: dict[str, list[str]] = defaultdict(list)
    for line, row in rows(file):
        captions_of[name_in(row, FILE_COLUMNS, file, line)] += texts_in(row, CAPTION_COLUMNS, file, line)
    return captions_of
