"""Which reader an input needs."""

import re
from pathlib import Path
from typing import Literal

from lit_transfusion.data.sources.metadata import SUFFIXES
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.readers.base import Reader
from lit_transfusion.prepare.readers.coco import CocoReader
from lit_transfusion.prepare.readers.folder import FolderReader
from lit_transfusion.prepare.readers.hugging_face import HuggingFaceReader, holds_pictures, is_repository, is_saved
from lit_transfusion.prepare.readers.tars import TarReader
from lit_transfusion.text_reader import suffix

Kind = Literal["folder", "webdataset", "coco", "hugging_face"]
KINDS: dict[Kind, tuple[type[Reader], tuple[str, ...]]] = {  # with the options that each has
    "folder": (FolderReader, ("metadata",)),
    "webdataset": (TarReader, ("caption_column",)),
    "coco": (CocoReader, ("pictures",)),
    "hugging_face": (HuggingFaceReader, ("split", "image_column", "caption_column")),
}


def open_reader(paths: list[str], kind: Kind | None, options: dict[str, str | None]) -> tuple[Kind, Reader]:
    """The kind of an input and what reads it.

    Args:
        paths: Where it is: one path, or several of tars.
        kind: What it is; None to see from the paths.
        options: Of all kinds; those that are not None must be of this kind.
    """
    if not paths:
        raise InputError("no input: set input to a folder, tars, a COCO file or a Hugging Face data set")
    kind = kind or kind_of(paths)
    cls, known = KINDS[kind]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"--{name} has no meaning for an input of kind {kind} ({has}); leave it out or set --kind")
    if kind == "webdataset":
        return kind, TarReader(paths, **given)
    if len(paths) > 1:
        raise InputError(f"an input of kind {kind} is one path, and {len(paths)} are given: {' '.join(paths)}")
    path = Path(paths[0]).expanduser()
    if kind == "folder" and suffix(path) in SUFFIXES and path.is_file():
        return kind, FolderReader(str(path.parent), **{"metadata": path.name, **given})
    return kind, cls(str(path), **given)


def kind_of(paths: list[str]) -> Kind:
    """What an input is, seen from what its (first) path is."""
    path = Path(paths[0]).expanduser()
    if len(paths) > 1 or suffix(path) == ".tar" or any(letter in paths[0] for letter in "*?"):
        return "webdataset"
    if path.is_dir():
        names = {file.name for file in path.iterdir()}
        if is_saved(path) or is_repository(path):
            return "hugging_face"
        visible = [name for name in names if not name.startswith(".")]
        return "webdataset" if visible and all(suffix(name) == ".tar" for name in visible) else "folder"
    if path.is_file():
        if suffix(path) in SUFFIXES:
            return "hugging_face" if holds_pictures(path) else "folder"
        if suffix(path) == ".json":
            return "coco"
        raise InputError(f"{path} is neither a tar nor .json nor a metadata file; set --kind if it is one nevertheless")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", paths[0]):
        if path.parent.is_dir():  # a mistyped path; to ask the hub for it takes half a minute without a network
            raise InputError(
                f"{path} is not there, though the folder {path.parent} is; mend the path, or set --kind hugging_face "
                "if it is a data set on the hub"
            )
        return "hugging_face"  # on the hub
    raise InputError(f"{path} is not there; set input to a folder, tars, a COCO file or a Hugging Face data set")
