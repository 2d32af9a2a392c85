"""A source of pictures in a folder, with captions beside them or in a metadata file."""

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
from lit_transfusion.data.types import Example, Skipped, format_skipped
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import NOT_UTF8, UnreadableText, decode, is_encodable, split_lines
from lit_transfusion.wording import counted

FILE_COLUMNS = ("file_name", "file", "image", "path")  # the first existing column is used
CAPTION_COLUMNS = ("caption", "text", "captions")
# Files that may contain captions of many pictures, and those of one picture.
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".json", ".xlsx", ".ods")
BESIDE = (".txt", ".caption", ".captions", ".cap", ".tags", ".json", ".xml", ".md")

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A picture with captions."""

    name: str  # of the picture, relative to the folder, with forward slashes
    captions: tuple[str, ...]
    content: str = ""  # digest, equal for equal files


class ImageCaptions(Source):
    """Your own pictures: a folder and all folders in it, with captions in one of two forms.

    - `cat.txt` beside `cat.jpg`: each nonempty line is one caption.
    - `metadata.csv`, `.tsv`, `.jsonl` or `.parquet` with a column `file_name` (or `file`, `image`, `path`) relative to
      the folder, and a column `caption` (or `text`, `captions`), which in .jsonl and .parquet may be a list. A file
      named in several rows has several captions. If there is such a metadata file, `.txt` files are not read.

    Files with equal content are one picture, with the captions of all of them. A copy that was saved again has another
    content; only `prepare` also finds pictures that look the same. To compare files, the first start reads each once.

    Hidden files and links to folders are ignored. Pictures without a caption are left out, with a warning.
    The middle square of each picture is resized to `image_size`; `data.keep_ratio` keeps the aspect ratio instead.

    Args:
        path: The folder.
        image_size: Side of the square pictures, in pixels (set by the data module's `image_size`).
        val_fraction: Share of the pictures that is held out, in [0, 1); at least one picture unless it is 0. The choice
            of a picture depends only on the content of its file and `seed`, not on names or other pictures.
        metadata: Path of a metadata file with another name, relative to the folder or absolute.
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
        super().__init__(image_size, val_fraction)
        self.path = path
        self.metadata = metadata
        self.seed = seed
        if not path:
            raise InputError("ImageCaptions has no path; set path to a folder of pictures with captions")
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
            used = counted(len(self._entries), "picture")
            log.warning("%s: %s used, %d left out: %s", self._folder, used, len(left_out), format_skipped(left_out))

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
            return Example(read_image(file, self.image_size, self.multiple_of), entry.captions)
        except ValueError as error:
            return Skipped(str(file), str(error))

    def fingerprint(self) -> str:
        """A hash of names, captions and contents."""
        return digest(self._entries)

    def captions(self) -> list[str]:
        return [caption for entry in self._entries for caption in entry.captions]


def find_entries(folder: Path, metadata: str | None) -> tuple[list[Entry], list[Skipped]]:
    """Find the captioned pictures of a folder, sorted by name, and those left out, with names like `Entry.name`."""
    if not folder.exists():
        raise InputError(f"no such folder: {folder}; set path to a folder of pictures with captions")
    if not folder.is_dir():
        raise InputError(f"not a folder: {folder}; set path to the folder of the pictures")

    files = list_files(folder)
    names = PictureNames(folder, files)
    pictures = {name for name in files if is_picture_name(name)}
    left_out: list[Skipped] = []
    read = {composed(os.path.splitext(name)[0]) for name in pictures}
    for name in sorted(files):
        if (reason := why_not_read(name)) and composed(os.path.splitext(name)[0]) not in read:  # a.cr2 beside a.jpg
            left_out.append(Skipped(name, reason))
    metadata_file = find_metadata(folder, metadata)
    if not pictures and not metadata_file:
        others = f"; {format_skipped(left_out)}" if left_out else ""
        raise InputError(
            f"no pictures in {folder} or its subfolders; give a folder with {' '.join(PICTURE_SUFFIXES)}{others}"
        )

    if metadata_file:
        captions_of, missing = _read_metadata(metadata_file, names)
        if missing and not captions_of:
            raise InputError(
                f"none of the {len(missing)} files named in {metadata_file} exists (first: "
                f"{names.missing(missing[0])}); write names relative to {folder}"
            )
        # A named file counts as a picture, whatever its suffix is, except for formats that cannot be read.
        pictures |= captions_of.keys()
        if missing:
            reason = f"named in {metadata_file.name} but missing"
            left_out += [Skipped(name, reason) for name in (names.missing(missing[0]), *missing[1:])]
    else:
        captions_of = _read_text_files(folder, files, left_out)

    entries = []
    for name in sorted(pictures.difference(one.name for one in left_out)):
        if not all(map(is_encodable, captions_of.get(name, ()))):  # half of a surrogate pair, which JSON can contain
            left_out.append(Skipped(name, f"with a caption that is {NOT_UTF8}"))
        elif captions_of.get(name):
            entries.append(Entry(name, without_repeats(captions_of[name])))
        else:
            left_out.append(Skipped(name, "without a caption"))
    if not entries:
        looked_in = metadata_file or f"{', '.join(METADATA_FILES)} and a .txt beside each picture"
        raise InputError(
            f"no picture in {folder} has a caption: "
            f"{format_skipped(left_out) or 'none is named in ' + str(metadata_file)}; "
            f"looked in {looked_in}{_likely(files, metadata_file)}; put name.txt beside name.jpg with one caption a "
            "line, or a metadata.csv or metadata.jsonl in the folder with columns file_name and caption"
        )
    return entries, left_out


def merged(folder: Path, entries: list[Entry]) -> list[Entry]:
    """Merge entries with equal files into one, with the name of the first and the captions of all."""
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
    """The part of a message that names files which may contain captions: tables by name, others by suffix."""
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


def list_files(folder: Path) -> list[str]:
    """List the files in a folder and its subfolders, relative to it, with forward slashes. Hidden ones are ignored."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk enters the remaining folders
        names += [Path(place, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return names


def _read_text_files(folder: Path, files: list[str], left_out: list[Skipped]) -> dict[str, list[str]]:
    """Read the captions of each picture from its .txt file. Adds pictures with an unreadable .txt to `left_out`."""
    text_files = {composed(os.path.splitext(name)[0]): name for name in files if name.lower().endswith(".txt")}
    captions_of = {}
    for name in sorted(files):
        stem = composed(os.path.splitext(name)[0])
        if not is_picture_name(name) or stem not in text_files:
            continue
        try:
            lines = split_lines(decode((folder / text_files[stem]).read_bytes()))
        except UnreadableText as error:
            left_out.append(Skipped(name, f"with a caption that is {error}"))
        else:
            captions_of[name] = clean(lines)
    return captions_of


def _read_metadata(file: Path, names: PictureNames) -> tuple[dict[str, list[str]], list[str]]:
    """Read the captions of each picture from all its rows. Also returns the names without a file, sorted."""
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
