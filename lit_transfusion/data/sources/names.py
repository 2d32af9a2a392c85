"""Finds the pictures that a metadata file names, however their names are spelled."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path


class PictureNames:
    """The files of a folder, found by names from elsewhere.

    `x.png`, `./x.png`, `../FOLDER/x.png` and the absolute path are one file; so are é as one character and as e with an
    accent, which macOS and other systems write differently, and slashes and the backslashes of Windows.

    Args:
        folder: What names are relative to.
        files: Names of the files in it, relative to it, with forward slashes.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self._root = os.path.abspath(folder)
        self._files = set(files)
        self._composed = {composed(name): name for name in sorted(self._files)}
        self._by_last: dict[str, str] | None = None

    def find(self, name: str) -> str | None:
        """The one name of a file relative to the folder, with forward slashes; None if there is no such file."""
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            relative = self._relative(spelled)
            if relative in self._files:
                return relative
            if composed(relative) in self._composed:
                return self._composed[composed(relative)]
            for form in dict.fromkeys((relative, composed(relative), unicodedata.normalize("NFD", relative))):
                if os.path.isfile(os.path.join(self._root, form)):  # outside of the folder, or hidden in it
                    return form
        return None

    def missing(self, name: str) -> str:
        """A name that was not found and, if there is one that may be meant, the name of that file."""
        if self._by_last is None:
            self._by_last = {last(file): file for file in sorted(self._files, reverse=True)}
        likely = self._by_last.get(last(name))
        return name if likely is None else f"{name}, where the folder has {likely}"

    def _relative(self, name: str) -> str:
        path = os.path.normpath(os.path.join(self._root, name))
        try:
            return Path(os.path.relpath(path, self._root)).as_posix()
        except ValueError:  # on another drive of Windows
            return Path(path).as_posix()


def composed(name: str) -> str:
    """A name with each accented letter as one character."""
    return unicodedata.normalize("NFC", name)


def last(name: str) -> str:
    """The last part of a path, whatever slashes it has, in lower case."""
    return composed(name.replace("\\", "/").rpartition("/")[2]).casefold()
