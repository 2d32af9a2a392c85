"""A source of texts in .txt, .jsonl or .parquet files of any size."""

import copy
import logging
from pathlib import Path
from typing import Literal

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.sources.text_table import TextOptions, text_table
from lit_transfusion.data.training_text import PASSAGE, passages_of
from lit_transfusion.data.types import TextExample, format_reasons
from lit_transfusion.errors import InputError
from lit_transfusion.wording import counted

SAMPLE = 4_000_000  # largest number of characters to train a tokenizer

log = logging.getLogger(__name__)


class TextCorpus(Source):
    """Your own texts: a .txt, .jsonl or .parquet file, or a folder of such files with all folders in it.

    A document is a .txt file or a block in it, a line of a .jsonl file, or a row of a .parquet file. No document is
    cut: a long one becomes several examples. All texts are copied once to Arrow files in `.lit_transfusion` beside
    them, which are read on access. Documents that are empty, not UTF-8 or not JSON are left out, with a warning. Hidden
    files and links to folders are ignored.

    Args:
        path: The file or folder.
        image_size: Unused; all sources have it (set by the data module's `image_size`).
        documents: A document of a .txt file: the whole "file", or each "block" between blank lines.
        column: The column of .parquet files, or field of .jsonl files, that contains the text.
        val_fraction: Share of the documents that is held out, in [0, 1); unless it is 0, at least one of two or more
            different documents. The choice depends only on the text and `seed`, so equal documents stay together.
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
        super().__init__(image_size, val_fraction)
        self.path = path
        self.documents = documents
        self.column = column
        self.seed = seed
        self.part: Literal["train", "val"] = "train"
        if not path:
            raise InputError(
                "TextCorpus has no path; set path to a .txt, .jsonl or .parquet file, or a folder of these"
            )
        if documents not in ("file", "block"):
            raise InputError(f"TextCorpus: documents is {documents!r}; set it to file or block")
        given = Path(path).expanduser()
        if not given.exists():
            raise InputError(f"no such file or folder: {given}; set path to the file or folder of the texts")
        self._table = text_table(given, TextOptions(documents, column, val_fraction, seed))
        if left_out := self._table.left_out:
            used, without = counted(self._table.num_documents, "document"), sum(count for count, _ in left_out.values())
            log.warning("%s: %s used, %d left out: %s", given, used, without, format_reasons(left_out))

    def split(self, name: Literal["train", "val"]) -> "TextCorpus":
        """The training split or the validation split. A source without a split yields the training split."""
        part = copy.copy(self)
        part.part = name
        return part

    def __len__(self) -> int:
        return self._table.num_examples[self.part]

    def __getitem__(self, index: int) -> TextExample:
        return self._table.example(self.part, index)

    def fingerprint(self) -> str:
        """A hash of the names, sizes and times of the files."""
        return self._table.folder.name.rpartition("-")[2]

    def captions(self) -> list[str]:
        """Passages of up to 1,000 characters, evenly spread over the documents: 4 million characters at most."""
        count = min(len(self), SAMPLE // PASSAGE)
        budget = max(PASSAGE, SAMPLE // max(count, 1))  # largest number of characters of one document
        passages = []
        for number in range(count):
            passages += passages_of(self[number * len(self) // count].text[:budget])
        return passages
