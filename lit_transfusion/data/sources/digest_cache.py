"""What the pictures of a folder hold, read once and then kept in a file, for as long as size and time do not change."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from lit_transfusion.data.digests import content_of, is_picture
from lit_transfusion.data.shards.files import whole_file
from lit_transfusion.data.sources.text_index import FOLDER, cache_home
from lit_transfusion.errors import InputError

FILE = "pictures.json"
VERSION = 1  # of what the file holds
THREADS = 16  # reading waits for the disk or the network, and hashing does not hold the interpreter
AT_ONCE = 64  # pictures that a thread takes
WORTH_SAYING = 5000  # pictures to read, some seconds' work

log = logging.getLogger(__name__)

Known = dict[str, tuple[int, int, str]]  # name → size in bytes, time of change in ns, content in hex


def contents_of(folder: Path, names: Sequence[str]) -> list[bytes]:
    """What `content_of` says of each of these files in a folder.

    It is kept in `.lit_transfusion` in the folder, or where that cannot be written, in the user's cache: the second
    time, a file is asked only for its size and the time of its last change.
    """
    places = folder / FOLDER, cache_home() / FOLDER.removeprefix(".") / _key(folder)
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
                    log.info("%s: reading the pictures once: %d of %d", folder, len(contents), len(names))
    finally:  # also what was read until it was interrupted
        threads.shutdown(cancel_futures=True)
        if new:
            _save(places, before | new)
    return contents


def _content(folder: Path, name: str, before: tuple[int, int, str] | None) -> tuple[bytes, tuple[int, int, str] | None]:
    """The content of a file, and what to keep of it: None if it is not a picture, or cannot be read."""
    file = os.path.join(folder, name)
    try:
        status = os.stat(file)
        if before and (status.st_size, status.st_mtime_ns) == tuple(before[:2]):
            return bytes.fromhex(before[2]), before
        data = Path(file).read_bytes()
    except OSError:  # whoever reads the picture will say so
        return content_of(b"", name), None
    content = content_of(data, name)
    # With another library installed, it may be a picture the next time.
    return content, (status.st_size, status.st_mtime_ns, content.hex()) if is_picture(data) else None


def _key(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]


def _load(file: Path) -> Known | None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["version"] != VERSION:
            return None
        return {name: (int(size), int(time), str(content)) for name, (size, time, content) in kept["pictures"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or damaged: it is made anew
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
    log.info("neither %s nor %s can be written: the pictures are read again at the next start", *places)
