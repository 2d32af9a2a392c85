"""A source of edits: a folder of pictures, and a metadata file with input, instruction and output of each edit."""

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
from lit_transfusion.data.types import EditExample, Skipped, format_skipped
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import NOT_UTF8, is_encodable
from lit_transfusion.wording import counted

# The first existing column is used. The later names are those of MagicBrush and InstructPix2Pix.
INPUT_COLUMNS = ("input", "input_image", "source_img", "original_image")
INSTRUCTION_COLUMNS = ("instruction", "instructions", "edit_prompt")
OUTPUT_COLUMNS = ("output", "output_image", "target_img", "edited_image")

log = logging.getLogger(__name__)


class _Triple(NamedTuple):
    input: str  # name of the picture, relative to the folder, with forward slashes
    instructions: tuple[str, ...]
    output: str
    contents: tuple[str, str] = ("", "")  # digests of input and output, equal for equal files


class EditTriples(Source):
    """Your own edits: a folder of pictures with a `metadata.csv`, `.tsv`, `.jsonl` or `.parquet`, one row per edit.

    The file has a column `input` (or `input_image`, `source_img`, `original_image`) and a column `output` (or
    `output_image`, `target_img`, `edited_image`) with the names of pictures relative to the folder. It also has a
    column `instruction` (or `instructions`, `edit_prompt`), which in .jsonl may be a list of several wordings. Rows
    without an instruction are left out, with a warning. Rows with the same input and output are one edit with several
    instructions. Files with equal content are the same picture. The middle square of each picture is resized to
    `image_size`.

    Args:
        path: The folder.
        image_size: Side of the square pictures, in pixels (set by the data module's `image_size`).
        val_fraction: Share of the pictures that is held out, in [0, 1). Edits that share a picture, such as the steps
            of one session, are a group that stays together. Unless it is 0, at least one group is held out. The choice
            depends only on the content of the files and `seed`.
        metadata: Path of a metadata file with another name, relative to the folder or absolute.
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
        super().__init__(image_size, val_fraction)
        self.path = path
        self.metadata = metadata
        self.seed = seed
        if not path:
            raise InputError("EditTriples has no path; set path to a folder of pictures with a metadata file")
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
                images.append(read_image(self._folder / name, self.image_size, self.multiple_of))
            except ValueError as error:
                return Skipped(str(self._folder / name), str(error))
        return EditExample(images[0], triple.instructions, images[1])

    def fingerprint(self) -> str:
        return digest(self._triples)

    def captions(self) -> list[str]:
        return [instruction for triple in self._triples for instruction in triple.instructions]


def _find_triples(folder: Path, metadata: str | None) -> list[_Triple]:
    """Read the rows of the metadata file, in their order. Warns about rows without an instruction."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; set path to the folder of the pictures")
    file = find_metadata(folder, metadata)
    if file is None:
        raise InputError(f"no {', '.join(METADATA_FILES)} in {folder}; set metadata if the file has another name")
    names = PictureNames(folder, list_files(folder))
    triples, left_out = [], []
    for line, row in rows(file):
        pictures = []
        for columns in (INPUT_COLUMNS, OUTPUT_COLUMNS):
            written = name_in(row, columns, file, line)
            name = names.find(written)
            if name is None:
                raise InputError(
                    f"{file}, line {line}: the {columns[0]} picture {names.missing(written)} does not exist; "
                    f"write names relative to {folder}"
                )
            if reason := why_not_read(name):
                raise InputError(f"{file}, line {line}: the {columns[0]} picture {folder / name} is {reason}")
            pictures.append(name)
        instructions = texts_in(row, INSTRUCTION_COLUMNS, file, line)
        if not all(map(is_encodable, instructions)):  # half of a surrogate pair, which JSON can contain
            left_out.append(Skipped(f"line {line}", f"with an instruction that is {NOT_UTF8}"))
        elif instructions:
            triples.append(_Triple(pictures[0], tuple(instructions), pictures[1]))
        else:
            left_out.append(Skipped(f"line {line}", "without an instruction"))
    if not triples:
        raise InputError(
            f"{file} contains no edit with an instruction; write one row of input, instruction and output for each edit"
        )
    if left_out:
        used = counted(len(triples), "edit")
        log.warning("%s: %s used, %d left out: %s", file, used, len(left_out), format_skipped(left_out))
    return triples


def _merged(folder: Path, triples: list[_Triple]) -> list[_Triple]:
    """Add content digests to the triples, and merge triples with equal inputs and equal outputs."""
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
    """Map the content of each picture to the representative of all pictures connected with it by edits."""
    neighbours: dict[str, list[str]] = {}
    for triple in triples:
        for one, other in (triple.contents, triple.contents[::-1]):
            neighbours.setdefault(one, []).append(other)
    family: dict[str, str] = {}
    for first in sorted(neighbours):
        reached = [] if first in family else [first]
        for picture in reached:  # grows during the loop
            if picture not in family:
                family[picture] = first
                reached += neighbours[picture]
    return family
