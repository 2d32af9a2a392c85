"""A folder of pictures and a metadata file that says which becomes which by what instruction."""

import copy
import logging
from pathlib import Path
from typing import Literal, NamedTuple

from lit_transfusion.data.digests import without_repeats
from lit_transfusion.data.images import read_image
from lit_transfusion.data.sources.base import Source, digest, hold_out
from lit_transfusion.data.sources.digest_cache import contents_of
from lit_transfusion.data.sources.formats import why_not_read
from lit_transfusion.data.sources.image_captions import list_files
from lit_transfusion.data.sources.metadata import METADATA_FILES, find_metadata, name_in, rows, texts_in
from lit_transfusion.data.sources.names import PictureNames
from lit_transfusion.data.types import EditExample, Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import NOT_UTF8, is_encodable
from lit_transfusion.wording import counted

# The first that is there counts. The later ones are those of MagicBrush and of InstructPix2Pix.
INPUT_COLUMNS = ("input", "input_image", "source_img", "original_image")
INSTRUCTION_COLUMNS = ("instruction", "instructions", "edit_prompt")
OUTPUT_COLUMNS = ("output", "output_image", "target_img", "edited_image")

log = logging.getLogger(__name__)


class _Triple(NamedTuple):
    input: str  # name of the picture, relative to the folder, with forward slashes
    instructions: tuple[str, ...]
    output: str
    contents: tuple[str, str] = ("", "")  # of input and output, equal for files that hold the same


class EditTriples(Source):
    """Your own edits: a folder of pictures with a `metadata.csv`, `.tsv`, `.jsonl` or `.parquet`, a row for each edit.

    It has a column `input` (or `input_image`, `source_img`, `original_image`) and a column `output` (or `output_image`,
    `target_img`, `edited_image`) with the names of pictures relative to the folder, and a column `instruction` (or
    `instructions`, `edit_prompt`), which in jsonl may be a list of several wordings. Rows without an instruction are
    left out, with a warning. Rows of the same input and output are one edit with several instructions, and files with
    equal content are the same, whatever they are called. The middle square of each picture is resized to `image_size`.

    Args:
        path: The folder.
        image_size: Side of the square pictures it yields, in pixels (set by the data module's `image_size`).
        val_fraction: Share of the pictures that is held out, in [0, 1); edits that share a picture, such as the steps
            of one session, stay together. At least one group of these is held out unless it is 0. Which ones depends
            on what the files hold and `seed` alone.
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
        found = _find_triples(self._folder, metadata)
        self._triples = _merged(self._folder, found)
        if copies := len(found) - len(self._triples):
            log.info("%s: %s merged with others of equal input and output", self._folder, counted(copies, "row"))

    def split(self, name: Literal["train", "val"]) -> "EditTriples":
        family = _families(self._triples)
        held_out = hold_out(family.values(), self.val_fraction, self.seed)
        part = copy.copy(self)
        part._triples = [t for t in self._triples if (family[t.contents[0]] in held_out) == (name == "val")]
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
        raise InputError(f"no {', '.join(METADATA_FILES)} in {folder}; set metadata if its name is another")
    names = PictureNames(folder, list_files(folder))
    triples, without, not_unicode = [], [], []
    for line, row in rows(file):
        pictures = []
        for columns in (INPUT_COLUMNS, OUTPUT_COLUMNS):
            written = name_in(row, columns, file, line)
            name = names.find(written)
            if name is None:
                raise InputError(
                    f"{file}, line {line}: the {columns[0]} picture {names.missing(written)} is not there; "
                    f"names in it are relative to {folder}"
                )
            if reason := why_not_read(name):
                raise InputError(f"{file}, line {line}: the {columns[0]} picture {folder / name} is {reason}")
            pictures.append(name)
        instructions = texts_in(row, INSTRUCTION_COLUMNS, file, line)
        if not all(map(is_encodable, instructions)):  # half of a surrogate pair, which JSON can write
            not_unicode.append(line)
        elif instructions:
            triples.append(_Triple(pictures[0], tuple(instructions), pictures[1]))
        else:
            without.append(line)
    if not triples:
        raise InputError(
            f"{file} holds no edit with an instruction; write a row of input, instruction, output for each"
        )
    for lines, fault in ((without, "without an instruction"), (not_unicode, f"with one that is {NOT_UTF8}")):
        if lines:
            log.warning(
                "%s: %d edits used, %d %s left out (first: line %d)",
                *(file, len(triples), len(lines), fault, lines[0]),
            )
    return triples


def _merged(folder: Path, triples: list[_Triple]) -> list[_Triple]:
    """Triples with their contents; those whose inputs hold the same, and outputs too, are one."""
    names = sorted({name for triple in triples for name in (triple.input, triple.output)})
    content = dict(zip(names, (content.hex() for content in contents_of(folder, names)), strict=True))
    same: dict[tuple[str, str], _Triple] = {}
    for triple in triples:
        contents = content[triple.input], content[triple.output]
        first = same.setdefault(contents, triple)
        instructions = first.instructions if first is triple else first.instructions + triple.instructions
        same[contents] = first._replace(instructions=without_repeats(instructions), contents=contents)
    return list(same.values())


def _families(triples: list[_Triple]) -> dict[str, str]:
    """Content of a picture → the one that stands for all that a chain of edits connects it with."""
    neighbours: dict[str, list[str]] = {}
    for triple in triples:
        for one, other in (triple.contents, triple.contents[::-1]):
            neighbours.setdefault(one, []).append(other)
    family: dict[str, str] = {}
    for first in sorted(neighbours):
        reached = [] if first in family else [first]
        for picture in reached:  # grows as it is read
            if picture not in family:
                family[picture] = first
                reached += neighbours[picture]
    return family
