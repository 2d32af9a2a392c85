"""A folder of pictures with captions beside them or in a metadata file."""

import copy
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

from lit_transfusion.data.digests import SamePictures, as_digests, without_repeats
from lit_transfusion.data.images import read_image
from lit_transfusion.data.sources.base import Source, digest, hold_out
from lit_transfusion.data.sources.digest_cache import contents_of
from lit_transfusion.data.sources.formats import PICTURE_SUFFIXES, is_picture_name, why_not_read
from lit_transfusion.data.sources.metadata import (
    METADATA_FILES,
    SUFFIXES,
    clean,
    find_metadata,
    name_in,
    rows,
    texts_in,
)
from lit_transfusion.data.sources.names import PictureNames, composed
from lit_transfusion.data.types import Example, Skipped, in_words
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import NOT_UTF8, UnreadableText, decode, is_encodable, split_lines
from lit_transfusion.wording import counted

FILE_COLUMNS = ("file_name", "file", "image", "path")  # the first that is there counts
CAPTION_COLUMNS = ("caption", "text", "captions")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".json", ".xlsx", ".ods")  # in which captions may be
BESIDE = (".txt", ".caption", ".captions", ".cap", ".tags", ".json", ".xml", ".md")  # of one picture

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A picture of a folder that has captions."""

    name: str  # of the picture, relative to the folder, with forward slashes
    captions: tuple[str, ...]
    content: str = ""  # equal for files that hold the same


class ImageCaptions(Source):
    """Your own pictures: a folder, searched with all folders in it, that holds captions in one of two ways.

    - `cat.txt` beside `cat.jpg`: each line that is not empty is one caption.
    - `metadata.csv`, `.tsv`, `.jsonl` or `.parquet` with a column `file_name` (or `file`, `image`, `path`) relative to
      the folder, and a column `caption` (or `text`, `captions`); but in csv it may be a list. A file named in several
      rows has several captions. If there is such a file, `.txt` files are not read.

    Files with equal content are one picture, with the captions of all of them. A copy that was saved anew has another
    content; `prepare` finds those that look the same, too. To compare them, each file is read once, at the first start.

    Hidden files and links to folders are passed over. Pictures without a caption are left out, with a warning.
    The middle square of each picture is resized to `image_size`.

    Args:
        path: The folder.
        image_size: Side of the square pictures it yields, in pixels (set by the data module's `image_size`).
        val_fraction: Share of the pictures that is held out, in [0, 1); at least one picture unless it is 0. Which
            ones depends on what the files hold and `seed` alone: neither names nor new pictures move the old ones.
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
        found, left_out = find_entries(self._folder, metadata)
        self._entries = merged(self._folder, found)
        if copies := len(found) - len(self._entries):
            log.info(
                "%s: %s merged with %s of equal content",
                self._folder,
                counted(copies, "picture"),
                "others" if copies > 1 else "another",
            )
        if left_out:
            count, used = sum(map(len, left_out.values())), counted(len(self._entries), "picture")
            log.warning("%s: %s used, %d left out: %s", self._folder, used, count, listed(left_out))

    def split(self, name: Literal["train", "val"]) -> "ImageCaptions":
        held_out = hold_out((entry.content for entry in self._entries), self.val_fraction, self.seed)
        part = copy.copy(self)
        part._entries = [entry for entry in self._entries if (entry.content in held_out) == (name == "val")]
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
        """Of names, captions and contents."""
        return digest(self._entries)

    def captions(self) -> list[str]:
        return [caption for entry in self._entries for caption in entry.captions]


def find_entries(folder: Path, metadata: str | None) -> tuple[list[Entry], dict[str, list[str]]]:
    """The pictures of a folder that have captions, sorted by name; and the names of those left out, by reason."""
    if not folder.exists():
        raise InputError(f"no such folder: {folder}; set path to a folder of pictures with captions")
    if not folder.is_dir():
        raise InputError(f"not a folder: {folder}; set path to the folder that the pictures are in")

    files = list_files(folder)
    names = PictureNames(folder, files)
    pictures = {name for name in files if is_picture_name(name)}
    left_out: dict[str, list[str]] = defaultdict(list)  # reason → names
    read = {composed(os.path.splitext(name)[0]) for name in pictures}
    for name in sorted(files):
        if (reason := why_not_read(name)) and composed(os.path.splitext(name)[0]) not in read:  # a.cr2 beside a.jpg
            left_out[reason].append(name)
    metadata_file = find_metadata(folder, metadata)
    if not pictures and not metadata_file:
        others = f"; {listed(left_out)}" if left_out else ""
        raise InputError(
            f"no pictures in {folder} or the folders in it; looked for {' '.join(PICTURE_SUFFIXES)}{others}"
        )

    if metadata_file:
        captions_of, missing = _read_metadata(metadata_file, names)
        if missing and not captions_of:
            raise InputError(
                f"none of the {len(missing)} files that {metadata_file} names is there (first: "
                f"{names.missing(missing[0])}); names in it are relative to {folder}"
            )
        # Whatever its suffix, a file that is named is taken for a picture, unless it is known not to be read.
        pictures |= captions_of.keys()
        if missing:
            left_out[f"named in {metadata_file.name} but not there"] = [names.missing(missing[0]), *missing[1:]]
    else:
        captions_of = _read_text_files(folder, files, left_out)

    entries = []
    for name in sorted(pictures.difference(*left_out.values())):
        if not all(map(is_encodable, captions_of.get(name, ()))):  # half of a surrogate pair, which JSON can write
            left_out[f"with a caption that is {NOT_UTF8}"].append(name)
        elif captions_of.get(name):
            entries.append(Entry(name, without_repeats(captions_of[name])))
        else:
            left_out["without a caption"].append(name)
    if not entries:
        looked_in = metadata_file or f"{', '.join(METADATA_FILES)} and a .txt beside each picture"
        raise InputError(
            f"no picture in {folder} has a caption: {listed(left_out) or 'none is named in ' + str(metadata_file)}; "
            f"looked in {looked_in}{_likely(files, metadata_file)}; put name.txt beside name.jpg with one caption a "
            "line, or a metadata.csv or metadata.jsonl in the folder with columns file_name and caption"
        )
    return entries, left_out


def merged(folder: Path, entries: list[Entry]) -> list[Entry]:
    """Entries whose files hold the same as one, with the captions of all, by the name of the first."""
    contents = contents_of(folder, [entry.name for entry in entries])
    return [
        Entry(
            entries[same[0]].name,
            without_repeats([caption for i in same for caption in entries[i].captions]),
            contents[same[0]].hex(),
        )
        for same in SamePictures(as_digests(contents))
    ]


def _likely(files: list[str], metadata_file: Path | None) -> str:
    """The files that captions may be in, in words for a message: tables by name, others by suffix."""
    stems = {os.path.splitext(name)[0] for name in files if is_picture_name(name)}
    tables, beside = [], defaultdict(list)
    for name in sorted(files):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in BESIDE and (stem in stems or is_picture_name(stem)):  # cat.caption, cat.jpg.txt
            beside[suffix if stem in stems else os.path.splitext(stem)[1] + suffix].append(name)
        elif suffix.lower() in TABLES and name != (metadata_file and metadata_file.name):
            tables.append(name)
    found = tables[:5] + [f"{len(names)} name{suffix} (first: {names[0]})" for suffix, names in beside.items()]
    if not found:
        return ""
    readable = next((name for name in tables if name.lower().endswith(SUFFIXES)), None)
    use = f" (set metadata to {readable} if they are in it)" if readable else ""
    return f"; there is also {', '.join(found)}{use}"


def listed(left_out: dict[str, list[str]]) -> str:
    return in_words({reason: (len(names), names[0]) for reason, names in left_out.items()})


def list_files(folder: Path) -> list[str]:
    """Names of all files in a folder and the folders in it, relative to it, with forward slashes."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk goes on into what is left here
        names += [Path(place, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return names


def _read_text_files(folder: Path, files: list[str], left_out: dict[str, list[str]]) -> dict[str, list[str]]:
    """Captions by picture, from the .txt beside it. Puts pictures whose .txt cannot be read on the list `left_out`."""
    text_files = {composed(os.path.splitext(name)[0]): name for name in files if name.lower().endswith(".txt")}
    captions_of = {}
    for name in sorted(files):
        stem = composed(os.path.splitext(name)[0])
        if not is_picture_name(name) or stem not in text_files:
            continue
        try:
            lines = split_lines(decode((folder / text_files[stem]).read_bytes()))
        except UnreadableText as error:
            left_out[f"with a caption that is {error}"].append(name)
        else:
            captions_of[name] = clean(lines)
    return captions_of


def _read_metadata(file: Path, names: PictureNames) -> tuple[dict[str, list[str]], list[str]]:
    """Captions by picture, from all rows that name it; and the names without a file, sorted."""
    captions_of: dict[str, list[str]] = defaultdict(list)
    missing = set()
    for line, row in rows(file):
        written = name_in(row, FILE_COLUMNS, file, line)
        texts = texts_in(row, CAPTION_COLUMNS, file, line)
        if (name := names.find(written)) is None:
            missing.add(written)
        else:
            captions_of[name] += texts
    return captions_of, sorted(missing)
