"""A reader of data sets of the `datasets` library, from a folder or the Hugging Face hub."""

import io
from pathlib import Path
from typing import Any

from lit_transfusion.data.sources.base import digest
from lit_transfusion.data.sources.formats import is_picture_name
from lit_transfusion.data.sources.image_captions import CAPTION_COLUMNS
from lit_transfusion.data.sources.metadata import METADATA_FILES
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.readers.base import Item, Reader, usable_captions
from lit_transfusion.text_reader import suffix


class HuggingFaceReader(Reader):
    """Rows of a Hugging Face data set. The key of a row is its split and its number in the split.

    Unless `save_to_disk` wrote it, the data set is first unpacked into the cache of `datasets`, which needs its space a
    second time.

    Args:
        path: A folder written by `save_to_disk`; a folder of .parquet files that contain pictures, in the layout of the
            hub, or one such file; or the name of a data set on the hub.
        split: The split to read.
        image_column: The column of pictures; None takes the only column of pictures, or else of bytes.
        caption_column: The column of captions, each a text or a list of texts; None: caption, text or captions.
    """

    def __init__(
        self, path: str, split: str = "train", image_column: str | None = None, caption_column: str | None = None
    ) -> None:
        super().__init__()
        try:
            import datasets
        except ImportError:
            here = "" if Path(path).exists() else f"{path} does not exist; if it is a data set on the hub: "
            raise InputError(
                f'{here}a Hugging Face data set needs the package datasets; pip install -e ".[data]"'
            ) from None
        dataset = load(path, split)
        pictures = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        likely = pictures or columns_of_bytes(dataset.features.arrow_schema)
        self._image = choose_column("image_column", image_column, likely, dataset.column_names, path)
        captions = [name for name in CAPTION_COLUMNS if name in dataset.column_names]
        self._caption = choose_column("caption_column", caption_column, captions[:1], dataset.column_names, path)
        if self._image in pictures:  # keep the file content; `read_pixels` decodes it
            dataset = dataset.cast_column(self._image, datasets.Image(decode=False))
        self._rows = dataset.select_columns([self._image, self._caption])
        self._path, self._split = path, split

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item | Skipped:
        name = f"{self._path}, {self._split}, row {index}"
        row = self._rows[index]
        texts = row[self._caption]
        try:
            captions = usable_captions(texts if isinstance(texts, list) else [texts])
            return Item(f"{self._split}/{index:09d}", name, file_of(row[self._image]), captions)
        except ValueError as error:
            return Skipped(name, str(error))

    def fingerprint(self) -> str:
        texts = (self._rows[start : start + 1000][self._caption] for start in range(0, len(self), 1000))
        return digest([self._split, self._image, self._caption, *texts])


def load(path: str, split: str) -> Any:
    """Load the split of a data set from a folder, a file or the hub."""
    import datasets

    try:
        if Path(path).is_file():
            return datasets.load_dataset("parquet", data_files=path, split=split)
        if not is_saved(Path(path)):
            return datasets.load_dataset(path, split=split)
        dataset = datasets.load_from_disk(path)
    except Exception as error:  # the underlying libraries raise many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fix = "save it again" if Path(path).exists() else "no such folder exists; fix the path or the name on the hub"
        raise InputError(f"the Hugging Face data set {path} could not be loaded ({reason}); {fix}") from None
    if not isinstance(dataset, datasets.DatasetDict):
        if split not in ("train", str(dataset.split)):  # train is the default
            raise InputError(f"{path} has no splits, but split is {split}; remove it")
        return dataset
    if split not in dataset:
        raise InputError(f"{path} has no split {split}; set split to one of {', '.join(dataset)}")
    return dataset[split]


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    names = "dataset_dict.json", "dataset_info.json", "state.json"
    several, *one = ((folder / name).is_file() for name in names)
    return several or all(one)


def is_repository(folder: Path) -> bool:
    """Whether a folder contains .parquet files in the layout of the hub, and no picture files that they could name."""
    tables = [file for pattern in ("*.parquet", "*/*.parquet") for file in folder.glob(pattern)]
    if all(file.name in METADATA_FILES for file in tables):
        return False
    return not any(is_picture_name(file.name) for file in folder.rglob("*"))


def holds_pictures(file: Path) -> bool:
    """Whether a metadata file is a .parquet that contains pictures instead of their names."""
    if suffix(file) != ".parquet":
        return False
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_schema

    try:
        return bool(columns_of_bytes(read_schema(file)))
    except (ArrowInvalid, OSError):  # its reader reports this error
        return False


def columns_of_bytes(schema: Any) -> list[str]:
    """Columns of a pyarrow.Schema that `file_of` accepts: bytes, or structs with a field `bytes`."""
    from pyarrow import types

    return [
        field.name
        for field in schema
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]


def choose_column(option: str, wanted: str | None, likely: list[str], columns: list[str], path: str) -> str:
    """Choose a column: the wanted one, or the only likely one."""
    if wanted is not None:
        if wanted not in columns:
            raise InputError(f"{path} has no column {wanted}; set {option} to one of {', '.join(columns)}")
        return wanted
    if len(likely) != 1:
        raise InputError(f"the column to use in {path} is unclear; set {option} to one of {', '.join(columns)}")
    return likely[0]


def file_of(value: Any) -> Path | io.BytesIO:
    """The picture of a row: its file content or its path."""
    match value:
        case {"bytes": bytes(content)} | bytes(content):
            return io.BytesIO(content)
        case {"path": str(path)} | str(path):
            return Path(path)
        case _:
            raise ValueError("without a picture")
