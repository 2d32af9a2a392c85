"""A cache of the content digests of the pictures in a folder. Entries are valid while size and time do not change."""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from lit_transfusion.data.digests import content_of, is_picture
from lit_transfusion.data.sources.cache_folder import cache_folders
from lit_transfusion.errors import InputError
from lit_transfusion.whole_file import whole_file

FILE = "pictures.json"
VERSION = 1  # of the format of the file
THREADS = 16  # reading waits for the disk or network, and hashing releases the GIL
AT_ONCE = 64  # pictures of one task of a thread
WORTH_SAYING = 5000  # pictures between two log messages: some seconds of work

log = logging.getLogger(__name__)

Known = dict[str, tuple[int, int, str]]  # name → size in bytes, time of change in ns, digest in hex


def contents_of(folder: Path, names: Sequence[str]) -> list[bytes]:
    """The `content_of` digests of files in a folder.

    They are cached in `.lit_transfusion` in the folder or, if that is not writable, in the user's cache. With a cached
    digest, only the size and modification time of a file are read.
    """
    places = cache_folders(folder)
    before = next((known for place in places if (known := _load(place / FILE)) is not None), {})
    contents: list[bytes] = []
    new: Known = {}
    parts = (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE))
    threads = ThreadPoolExecutor(THREADS)
    try:
        found = threads.map(lambda part: [_content(folder, name, before.get(name)) for name in part], parts)
        for name, (content, known) in zip(names, chain.from_iterable(found), strict=True):
            contents.append(content)
            if known and known != before.get(name):
                new[name] = known
                if len(new) % WORTH_SAYING == 0:
                    log.info("%s: reading all pictures once: %d of %d", folder, len(contents), len(names))
    finally:  # an interrupted run also saves what it has read
        threads.shutdown(cancel_futures=True)
        if new:
            _save(places, before | new)
    return contents


def _content(folder: Path, name: str, before: tuple[int, int, str] | None) -> tuple[bytes, tuple[int, int, str] | None]:
    """The digest of a file and its cache entry, which is None if the file is not a picture or cannot be read."""
    file = os.path.join(folder, name)
    try:
        status = os.stat(file)
        if before and (status.st_size, status.st_mtime_ns) == tuple(before[:2]):
            return bytes.fromhex(before[2]), before
        data = Path(file).read_bytes()
    except OSError:  # reading the picture reports this error later
        return content_of(b"", name), None
    content = content_of(data, name)
    # No entry for other files: with another library installed, they may be pictures the next time.
    return content, (status.st_size, status.st_mtime_ns, content.hex()) if is_picture(data) else None


def _load(file: Path) -> Known | None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["version"] != VERSION:
            return None
        return {name: (int(size), int(time), str(content)) for name, (size, time, content) in kept["pictures"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing or damaged: it is made again
        return None


def _save(places: Sequence[Path], pictures: Known) -> None:
    content = json.dumps({"version": VERSION, "pictures": pictures}).encode()
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with whole_file(place / FILE) as file:
                file.write(content)
            return
        except (OSError, InputError):
            continue
    log.info("neither %s nor %s is writable: the next start reads all pictures again", *places)
