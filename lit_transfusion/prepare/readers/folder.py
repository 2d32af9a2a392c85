"""A reader of a folder of captioned pictures, with the rules of `ImageCaptions`; `datasets` reads no .txt files."""

from pathlib import Path

from lit_transfusion.data.sources.base import digest
from lit_transfusion.data.sources.image_captions import find_entries
from lit_transfusion.data.types import Skipped
from lit_transfusion.prepare.readers.base import Item, Reader


class FolderReader(Reader):
    """Pictures with a .txt beside each, or with a metadata.csv, .tsv, .jsonl or .parquet; see `ImageCaptions`.

    Args:
        path: The folder.
        metadata: Path of a metadata file with another name, relative to the folder or absolute.
    """

    def __init__(self, path: str, metadata: str | None = None) -> None:
        super().__init__()
        self._folder = Path(path).expanduser()
        self._entries, left_out = find_entries(self._folder, metadata)
        self.left_out = [Skipped(str(self._folder / name), reason) for name, reason in left_out]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Item:
        entry = self._entries[index]
        file = self._folder / entry.name
        return Item(entry.name, str(file), file, entry.captions)

    def fingerprint(self) -> str:
        return digest(self._entries)
