"""The folders in which a source saves what it has found out about the files of a folder."""

import hashlib
import os
from pathlib import Path

FOLDER = ".lit_transfusion"


def cache_folders(folder: Path) -> tuple[Path, Path]:
    """The folder beside the files and, if that is not writable, the one in the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    key = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return folder / FOLDER, home / FOLDER.removeprefix(".") / key
