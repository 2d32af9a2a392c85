"""A reader of WebDataset tars, in which the members of a sample share their name up to the first dot."""

import glob
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from lit_transfusion.data.shards.open_files import OpenFiles
from lit_transfusion.data.sources.base import digest
from lit_transfusion.data.sources.formats import PICTURE_SUFFIXES, is_picture_name, why_not_read
from lit_transfusion.data.sources.image_captions import CAPTION_COLUMNS
from lit_transfusion.data.sources.names import composed
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.readers.base import Item, Reader, usable_captions
from lit_transfusion.text_reader import UnreadableText, decode, split_lines, suffix

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class _Place(NamedTuple):
    offset: int
    size: int


class _Sample(NamedTuple):
    tar: int
    key: str  # unique within the tar
    picture: _Place
    suffix: str  # of the picture
    text: _Place
    is_json: bool


class TarReader(Reader):
    """Samples of WebDataset tars: `KEY.jpg` (or .png, .webp, …) with `KEY.txt`, one caption a line, or `KEY.json`.

    `datasets` also reads such tars, but ends at a damaged header without an error, and copies all pictures.

    If a sample has both, its .txt is used. The constructor reads all headers, so tars must not be compressed. The key
    of an item is the name of its tar and the key of its sample, because many tars count from zero.

    Args:
        paths: Tars, folders of tars, or patterns such as "DIR/*.tar".
        caption_column: Field of a .json with the caption or a list of captions; None: caption, text or captions.
    """

    def __init__(self, paths: list[str], caption_column: str | None = None) -> None:
        super().__init__()
        self._columns = (caption_column,) if caption_column else CAPTION_COLUMNS
        self._tars = find_tars(paths)
        self._samples: list[_Sample] = []
        self._files = OpenFiles()
        broken = []
        for number, tar in enumerate(self._tars):
            try:
                self._list(number, tar)
            except (tarfile.TarError, OSError) as error:
                broken.append(f"{tar} ({error})")
        if broken:
            raise InputError(
                f"{len(broken)} of {len(self._tars)} tars cannot be read to their end: {', '.join(broken[:10])}"
                f"{', …' if len(broken) > 10 else ''}; download them again, or remove them from the input"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Item | Skipped:
        sample = self._samples[index]
        tar = self._tars[sample.tar]
        name = f"{tar}: {sample.key}{sample.suffix}"
        try:
            captions = usable_captions(self._texts(tar, sample))
            picture = self._read(tar, sample.picture)
        except OSError:
            return Skipped(name, "cannot be read from its tar")
        except ValueError as error:
            return Skipped(name, str(error))
        return Item(f"{Path(tar).stem}/{sample.key}", name, io.BytesIO(picture), captions)

    def fingerprint(self) -> str:
        return digest([[os.path.basename(tar) for tar in self._tars], *self._samples, *self._columns])

    def _list(self, number: int, tar: str) -> None:
        found: dict[str, dict[str, _Place]] = {}  # key → suffix → place
        repeated: dict[str, None] = {}
        for name, place in members(tar):
            match = re.fullmatch(r"((?:.*/)?[^./]+)(\.[^/]*)", name)  # key and suffix, as WebDataset divides names
            if not match:
                continue
            key, ending = composed(match[1]), match[2].lower()
            if ending in found.setdefault(key, {}):
                repeated[key] = None
            found[key][ending] = found[key].get(ending, place)
        self.left_out += [
            Skipped(f"{tar}: {key}", "with a key that its tar repeats; the first is used") for key in repeated
        ]
        for key, places in found.items():
            picture = next((ending for ending in PICTURE_SUFFIXES if ending in places), None)
            text = next((ending for ending in (".txt", ".json") if ending in places), None)
            if picture and text:
                self._samples.append(_Sample(number, key, places[picture], picture, places[text], text == ".json"))
            else:
                unread = next(filter(None, (why_not_read(f"x{suffix}") for suffix in places)), "without a picture")
                reason = "without a caption" if picture else unread
                self.left_out.append(Skipped(f"{tar}: {key}", reason))

    def _texts(self, tar: str, sample: _Sample) -> list[object]:
        """Read the captions of a sample. Raises ValueError with a reason if it has none."""
        try:
            text = decode(self._read(tar, sample.text))
            if not sample.is_json:
                return split_lines(text)
            metadata = json.loads(text)
        except UnreadableText as error:
            raise ValueError(f"with a caption that is {error}") from None
        except json.JSONDecodeError:
            raise ValueError("with broken json") from None
        values = [metadata[name] for name in self._columns if name in metadata] if isinstance(metadata, dict) else []
        if not values:
            raise ValueError("without a caption")
        return values[0] if isinstance(values[0], list) else [values[0]]

    def _read(self, tar: str, place: _Place) -> bytes:
        content = self._files.read(tar, *place)
        if len(content) < place.size:
            raise OSError("truncated after it was listed")
        return content


def members(tar: str) -> list[tuple[str, _Place]]:
    """Name and place of each file in a tar.

    Raises:
        tarfile.TarError, OSError: It is not a tar, compressed, damaged or truncated.
    """
    with open(tar, "rb") as file:
        start = file.read(6)
        for magic, tool in COMPRESSED.items():
            if start.startswith(magic):
                raise tarfile.TarError(f"compressed, which prevents random access; {tool} it")
        if not start:
            raise tarfile.TarError("empty")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as opened:
            found = [(member.name, _Place(member.offset_data, member.size)) for member in opened if member.isreg()]
            # At a damaged or truncated header, tarfile stops without an error. A real end is followed by zeros or
            # nothing.
            file.seek(opened.offset)
            rest = file.read(tarfile.BLOCKSIZE)
        if rest.strip(b"\0") or 0 < len(rest) < tarfile.BLOCKSIZE:
            raise tarfile.TarError(f"damaged at byte {opened.offset}")
    return found


def find_tars(paths: list[str]) -> list[str]:
    """Find the tars that paths, folders and patterns name, sorted and without repeats."""
    tars: set[str] = set()
    for path in map(os.path.expanduser, paths):
        pattern = os.path.join(glob.escape(path), "*.tar") if os.path.isdir(path) else path
        if os.path.isdir(path):
            found = [os.path.join(path, name) for name in os.listdir(path) if suffix(name) == ".tar" and name[0] != "."]
        else:
            found = [path] if os.path.isfile(path) else glob.glob(pattern, recursive=True)
        if not found:
            raise InputError(f"no tar matches {pattern}; set input to tars, or to a pattern in quotes")
        for file in found:
            if os.path.isdir(file) or is_picture_name(file):
                folder = file if os.path.isdir(file) else os.path.dirname(file) or "."
                raise InputError(
                    f"{file} is not a tar, but only tars can be several paths or a pattern; for pictures, give their "
                    f"folder {folder}"
                )
        tars.update(found)
    stems = [Path(tar).stem for tar in sorted(tars)]
    if len(set(stems)) < len(stems):
        repeated = next(stem for stem in stems if stems.count(stem) > 1)
        raise InputError(f"two tars are named {repeated}.tar, so their samples would have the same keys; rename one")
    return sorted(tars)
