"""Finds the pictures that a metadata file names, in any spelling of their names."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path


class PictureNames:
    """The files of a folder, by names in any spelling.

    `x.png`, `./x.png`, `../FOLDER/x.png` and the absolute path are the same file. So are é as one character and as e
    with an accent (macOS and other systems differ), and slashes and the backslashes of Windows.

    Args:
        folder: The folder that names are relative to.
        files: Names of its files, relative to it, with forward slashes.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self._root = os.path.abspath(folder)
        self._files = set(files)
        self._composed = {composed(name): name for name in sorted(self._files)}
        self._by_last: dict[str, str] | None = None

    def find(self, name: str) -> str | None:
        """The normalised name of a file, relative to the folder, with forward slashes; None if it does not exist."""
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            relative = self._relative(spelled)
            if relative in self._files:
                return relative
            if composed(relative) in self._composed:
                return self._composed[composed(relative)]
            for form in dict.fromkeys((relative, composed(relative), unicodedata.normalize("NFD", relative))):
                if os.path.isfile(os.path.join(self._root, form)):  # a file outside the folder or a hidden one
                    return form
        return None

    def missing(self, name: str) -> str:
        """A missing name for a message, with the existing file that is probably meant, if any."""
        if self._by_last is None:
            self._by_last = {last(file): file for file in sorted(self._files, reverse=True)}
        likely = self._by_last.get(last(name))
        return name if likely is None else f"{name} (the folder contains {likely})"

    def _relative(self, name: str) -> str:
        path = os.path.normpath(os.path.join(self._root, name))
        try:
            return Path(os.path.relpath(path, self._root)).as_posix()
        except ValueError:  # on another Windows drive
            return Path(path).as_posix()


def composed(name: str) -> str:
    """A name with each accented letter as one character."""
    return unicodedata.normalize("NFC", name)


def last(name: str) -> str:
    """The last part of a path with any kind of slashes, in lower case."""
    return composed(name.replace("\\", "/").rpartition("/")[2]).casefold()
