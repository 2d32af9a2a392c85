"""A folder of pictures and a metadata file that says which becomes which by what instruction."""

import copy
import logging
from pathlib import Path
from typing import Literal, NamedTuple

from lit_transfusion.data.document import EditExample, Skipped
from lit_transfusion.data.images import read_image
from lit_transfusion.data.sources.base import Source, digest, hold_out
from lit_transfusion.data.sources.metadata import find_metadata, name_in, rows, texts_in
from lit_transfusion.errors import InputError

# The first that is there counts. The later ones are those of MagicBrush and of InstructPix2Pix.
INPUT_COLUMNS = ("input", "input_image", "source_img", "original_image")
INSTRUCTION_COLUMNS = ("instruction", "instructions", "edit_prompt")
OUTPUT_COLUMNS = ("output", "output_image", "target_img", "edited_image")

log = logging.getLogger(__name__)


class _Triple(NamedTuple):
    input: str  # name of the picture, relative to the folder, with forward slashes
    instructions: tuple[str, ...]
    output: str


class EditTriples(Source):
    """Your own edits: a folder of pictures with a `metadata.csv` or `metadata.jsonl`, a row for each edit.

    It has a column `input` (or `input_image`, `source_img`, `original_image`) and a column `output` (or `output_image`,
    `target_img`, `edited_image`) with the names of pictures relative to the folder, and a column `instruction` (or
    `instructions`, `edit_prompt`), which in jsonl may be a list of several wordings. Rows without an instruction are
    left out, with a warning. The middle square of each picture is resized to `image_size`.

    Args:
        path: The folder.
        image_size: Side of the square pictures it yields, in pixels (set by the data module's `image_size`).
        val_fraction: Share of the pictures that is held out, in [0, 1); edits that share a picture, such as the steps
            of one session, stay together. At least one group of these is held out unless it is 0. Which ones depends
            on their names and `seed` alone.
        metadata: The metadata file, if its name is another: relative to the folder, or absolute.
        seed: Chooses another set of pictures to hold out.
    """

    images_per_example = 2

    def __init__(
        self,
        path: str = "",
        image_size: int = 64,
        val_fraction: float = 0.05,
        metadata: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size)
        self.path = path
        self.val_fraction = val_fraction
        self.metadata = metadata
        self.seed = seed
        if not path:
            raise InputError("EditTriples has no path: set path to a folder of pictures with a metadata file")
        if not 0 <= val_fraction < 1:
            raise InputError(f"EditTriples: val_fraction is {val_fraction}; set it to at least 0 and less than 1")
        self._folder = Path(path).expanduser()
        self._triples = _find_triples(self._folder, metadata)

    def split(self, name: Literal["train", "val"]) -> "EditTriples":
        family = _families(self._triples)
        held_out = hold_out(family.values(), self.val_fraction, self.seed)
        part = copy.copy(self)
        part._triples = [t for t in self._triples if (family[t.input] in held_out) == (name == "val")]
        return part

    def __len__(self) -> int:
        return len(self._triples)

    def __getitem__(self, index: int) -> EditExample | Skipped:
        triple = self._triples[index]
        images = []
        for name in (triple.input, triple.output):
            try:
                images.append(read_image(self._folder / name, self.image_size))
            except ValueError as error:
                return Skipped(str(self._folder / name), str(error))
        return EditExample(images[0], triple.instructions, images[1])

    def fingerprint(self) -> str:
        return digest(self._triples)

    def captions(self) -> list[str]:
        return [instruction for triple in self._triples for instruction in triple.instructions]


def _find_triples(folder: Path, metadata: str | None) -> list[_Triple]:
    """The rows of the metadata file that have an instruction, in its order. Warns of those that have none."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; set path to the folder that the pictures are in")
    file = find_metadata(folder, metadata)
    if file is None:
        raise InputError(f"no metadata.csv or metadata.jsonl in {folder}; set metadata if its name is another")
    triples, without = [], []
    for line, row in rows(file):
        pictures = [name_in(row, columns, file, line) for columns in (INPUT_COLUMNS, OUTPUT_COLUMNS)]
        for name, columns in zip(pictures, (INPUT_COLUMNS, OUTPUT_COLUMNS), strict=True):
            if not (folder / name).is_file():
                raise InputError(
                    f"{file}, line {line}: the {columns[0]} picture {folder / name} is not there; "
                    f"names in it are relative to {folder}"
                )
        instructions = texts_in(row, INSTRUCTION_COLUMNS, file, line)
        if instructions:
            triples.append(_Triple(pictures[0], tuple(instructions), pictures[1]))
        else:
            without.append(line)
    if not triples:
        raise InputError(
            f"{file} holds no edit with an instruction; write a row of input, instruction, output for each"
        )
    if without:
        log.warning(
            "%s: %d edits used, %d without an instruction left out (first: line %d)",
            *(file, len(triples), len(without), without[0]),
        )
    return triples


def _families(triples: list[_Triple]) -> dict[str, str]:
    """Picture → the one picture that stands for all that a chain of edits connects it with."""
    neighbours: dict[str, list[str]] = {}
    for triple in triples:
        neighbours.setdefault(triple.input, []).append(triple.output)
        neighbours.setdefault(triple.output, []).append(triple.input)
    family: dict[str, str] = {}
    for first in sorted(neighbours):
        reached = [] if first in family else [first]
        for picture in reached:  # grows as it is read
            if picture not in family:
                family[picture] = first
                reached += neighbours[picture]
    return family
