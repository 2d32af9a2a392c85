"""Texts in .txt, .jsonl or .parquet files, of any size."""

import copy
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.sources.text_files import row_of, text_in
from lit_transfusion.data.sources.text_index import TextOptions, text_index, told
from lit_transfusion.data.training_text import PASSAGE, passages_of
from lit_transfusion.data.types import Skipped, TextExample
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import suffix
from lit_transfusion.wording import counted

SAMPLE = 4_000_000  # characters to train a tokenizer from, at most

log = logging.getLogger(__name__)


class TextCorpus(Source):
    """Your own texts: a .txt, .jsonl or .parquet file, or a folder that holds such, with all folders in it.

    A document is a .txt file or a block in it, a line of a .jsonl file, or a row of a .parquet file. None is cut: one
    that is longer than a row becomes several. Texts are read when they are needed; where each begins is found out once
    and kept in `.lit_transfusion` beside them, with a copy of what .parquet files hold. What is empty, not UTF-8 or no
    JSON is left out, with a warning. Hidden files and links to folders are passed over.

    Args:
        path: The file or folder.
        image_size: Of no use here, and set by the data module's `image_size` as in all sources.
        documents: What one document of a .txt file is: the "file", or each "block" between blank lines.
        column: The column of .parquet, or field of .jsonl files, that holds the text.
        val_fraction: Share of the documents that is held out, in [0, 1); of two different ones or more, at least one,
            unless it is 0. Which ones depends on what they say and `seed` alone, so that equal ones stay together.
        seed: Chooses another set of documents to hold out.
    """

    images_per_example = 0
    has_texts = True

    def __init__(
        self,
        path: str = "",
        image_size: int = 64,
        documents: Literal["file", "block"] = "file",
        column: str = "text",
        val_fraction: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size)
        self.path = path
        self.documents = documents
        self.column = column
        self.val_fraction = val_fraction
        self.seed = seed
        self.part: Literal["train", "val"] = "train"
        if not path:
            raise InputError("TextCorpus has no path: set path to a .txt, .jsonl or .parquet file, or a folder of such")
        if documents not in ("file", "block"):
            raise InputError(f"TextCorpus: documents is {documents!r}; set it to file or block")
        if not 0 <= val_fraction < 1:
            raise InputError(f"TextCorpus: val_fraction is {val_fraction}; set it to at least 0 and less than 1")
        given = Path(path).expanduser()
        if not given.exists():
            raise InputError(f"no such file or folder: {given}; set path to the texts")
        self._folder = given if given.is_dir() else given.parent
        self._index = text_index(given, TextOptions(documents, column, val_fraction, seed))
        self._rows: np.ndarray | None = None  # opened by each process for itself, when it first needs them
        if self._index.left_out:
            log.warning(
                "%s: %s used, %d left out: %s",
                *(given, counted(self._index.num_documents, "document"), sum(self._index.left_out.values())),
                told(self._index.left_out, self._index.first_left_out),
            )

    def split(self, name: Literal["train", "val"]) -> "TextCorpus":
        """The training split, which is also what an unsplit source yields, or the validation split."""
        part = copy.copy(self)
        part.part = name
        return part

    def __len__(self) -> int:
        return self._index.num_examples[self.part]

    def __getitem__(self, index: int) -> TextExample | Skipped:
        if self._rows is None:
            self._rows = self._index.rows(self.part)
        row = self._rows[index]
        name = self._index.name(row)
        try:
            return TextExample(self._text(name, int(row["start"]), int(row["length"])), bool(row["complete"]))
        except (OSError, ValueError):
            return Skipped(str(self._folder / name), "not as it was when training began")

    def __getstate__(self) -> dict[str, Any]:
        """For a copy, or another process: without the rows, of which that opens its own."""
        return self.__dict__ | {"_rows": None}

    def fingerprint(self) -> str:
        """Of the names, sizes and times of the files."""
        return self._index.folder.name

    def captions(self) -> list[str]:
        """Passages of some hundred words, evenly spread over the documents: 4 million characters, or all."""
        count = min(len(self), SAMPLE // PASSAGE)
        budget = max(PASSAGE, SAMPLE // max(count, 1))  # characters of one document
        passages = []
        for number in range(count):
            example = self[number * len(self) // count]
            if isinstance(example, TextExample):
                passages += passages_of(example.text[:budget])
        return passages

    def _text(self, name: str, start: int, length: int) -> str:
        kind = suffix(name)
        with open(self._index.texts if kind == ".parquet" else self._folder / name, "rb") as file:
            file.seek(start)
            content = file.read(length)
        if len(content) < length:
            raise ValueError("the file is shorter than it was")
        return (text_in(row_of(content), self.column) if kind == ".jsonl" else content).decode()
