"""A reader of COCO captions: one JSON file for a folder of pictures."""

from collections import defaultdict
from pathlib import Path

from lit_transfusion.data.sources.base import digest
from lit_transfusion.data.sources.formats import why_not_read
from lit_transfusion.data.sources.image_captions import list_files
from lit_transfusion.data.sources.names import PictureNames
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.readers.base import Item, Reader, usable_captions
from lit_transfusion.text_reader import read_json

FORM = '{"images": [{"id": 1, "file_name": "…"}, …], "annotations": [{"image_id": 1, "caption": "…"}, …]}'


class CocoReader(Reader):
    """Captioned pictures of a COCO file, such as captions_train2014.json.

    Its form is {"images": [{id, file_name}, …], "annotations": [{image_id, caption}, …]}. A picture has all its
    captions. Entries with the same file are one picture.

    Args:
        path: The JSON file.
        pictures: The folder of the pictures; None if they are beside the file.
    """

    def __init__(self, path: str, pictures: str | None = None) -> None:
        super().__init__()
        file = Path(path).expanduser()
        self._folder = Path(pictures).expanduser() if pictures else file.parent
        names = PictureNames(self._folder, list_files(self._folder))
        captions_of: dict[str, list[object]] = {}
        missing = set()
        for written, captions in _read_captions(file).items():
            name = names.find(written)
            if name is None:
                missing.add(written)
            captions_of.setdefault(name or written, []).extend(captions)
        self._entries = []
        for name, captions in sorted(captions_of.items()):
            try:
                if reason := why_not_read(name):
                    raise ValueError(reason)
                self._entries.append((name, usable_captions(captions)))
            except ValueError as error:
                self.left_out.append(Skipped(str(self._folder / name), str(error)))
        if all(name in missing for name, _ in self._entries):
            first = f" (first: {names.missing(self._entries[0][0])})" if self._entries else ""
            raise InputError(
                f"none of the {len(self._entries)} captioned pictures named in {file} is in {self._folder}{first}; "
                "set pictures to the folder of the pictures"
            )

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Item:
        name, captions = self._entries[index]
        return Item(name, str(self._folder / name), self._folder / name, captions)

    def fingerprint(self) -> str:
        return digest(self._entries)


def _read_captions(file: Path) -> dict[str, list[object]]:
    """Read the captions of each picture, by its name."""
    match read_json(file):
        case {"images": list(images), "annotations": list(annotations)}:
            pass
        case _:
            raise InputError(f"{file} is not a captions file of COCO; its form must be {FORM}")
    name_of = {}
    for number, image in enumerate(images):
        match image:
            case {"id": int(identity) | str(identity), "file_name": str(name)}:
                name_of[identity] = name
            case _:
                raise InputError(f'{file}: image {number} is invalid; its form must be {{"id": 1, "file_name": "…"}}')
    captions_of: dict[str, list[object]] = defaultdict(list, {name: [] for name in name_of.values()})
    for number, annotation in enumerate(annotations):
        match annotation:
            case {"image_id": identity, "caption": caption} if identity in name_of:
                captions_of[name_of[identity]].append(caption)
            case _:
                raise InputError(
                    f'{file}: annotation {number} is invalid; its form must be {{"image_id": 1, "caption": "…"}}, '
                    "with the id of an image in the file"
                )
    return captions_of
