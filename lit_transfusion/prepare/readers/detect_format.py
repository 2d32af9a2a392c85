"""Detects the format of an input and opens its reader."""

import re
from pathlib import Path

from lit_transfusion.data.sources.metadata import SUFFIXES
from lit_transfusion.errors import InputError
from lit_transfusion.prepare import Kind
from lit_transfusion.prepare.readers.base import Reader
from lit_transfusion.prepare.readers.coco import CocoReader
from lit_transfusion.prepare.readers.folder import FolderReader
from lit_transfusion.prepare.readers.hugging_face import HuggingFaceReader, holds_pictures, is_repository, is_saved
from lit_transfusion.prepare.readers.tars import TarReader
from lit_transfusion.text_reader import suffix

KINDS: dict[Kind, tuple[type[Reader], tuple[str, ...]]] = {  # reader and its options
    "folder": (FolderReader, ("metadata",)),
    "webdataset": (TarReader, ("caption_column",)),
    "coco": (CocoReader, ("pictures",)),
    "hugging_face": (HuggingFaceReader, ("split", "image_column", "caption_column")),
}


def open_reader(paths: list[str], kind: Kind | None, given: dict[str, str]) -> tuple[Kind, Reader]:
    """Open the reader of an input. Returns the kind of the input and the reader.

    Args:
        paths: The input: one path, or several paths of tars.
        kind: Kind of the input; None detects it from the paths.
        given: Options by name; only those of this kind are valid.

    Raises:
        InputError: The input cannot be read, or an option belongs to another kind.
    """
    if not paths:
        raise InputError("no input; set input to a folder, tars, a COCO file or a Hugging Face data set")
    kind = kind or kind_of(paths)
    cls, known = KINDS[kind]
    for name in given:
        if name not in known:
            has = f"its options: {', '.join(known)}" if known else "it has none"
            raise InputError(f"--{name} is not an option for an input of kind {kind} ({has}); remove it or set --kind")
    if kind == "webdataset":
        return kind, TarReader(paths, **given)
    if len(paths) > 1:
        raise InputError(
            f"an input of kind {kind} is one path, but there are {len(paths)} ({' '.join(paths)}); give one"
        )
    path = Path(paths[0]).expanduser()
    if kind == "folder" and suffix(path) in SUFFIXES and path.is_file():
        return kind, FolderReader(str(path.parent), **{"metadata": path.name, **given})
    return kind, cls(str(path), **given)


def kind_of(paths: list[str]) -> Kind:
    """Detect the kind of an input from its (first) path."""
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
        raise InputError(f"{path} is neither a tar nor .json nor a metadata file; set --kind if it is one of these")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", paths[0]):
        if path.parent.is_dir():  # a mistyped path; without a network, a request to the hub takes half a minute
            raise InputError(
                f"{path} does not exist, but the folder {path.parent} does; fix the path, or set --kind hugging_face "
                "if it is a data set on the hub"
            )
        return "hugging_face"  # on the hub
    raise InputError(f"{path} does not exist; set input to a folder, tars, a COCO file or a Hugging Face data set")
