"""The two kinds of rows that a plan assumes: one text, or as many captioned images as fit."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.commands.plan.setup import Setup
from lit_transfusion.data.packing import room_for_text
from lit_transfusion.data.types import TEXT
from lit_transfusion.errors import InputError

CAPTION = 32  # tokens of a caption


class Row(NamedTuple):
    """A row without padding."""

    share: float  # of all rows, in [0, 1]
    document_ids: Tensor  # (1, L) int64
    image_ids: Tensor  # (1, L) int64, TEXT where there is no patch
    num_targets: int  # positions with a text target
    num_images: int
    num_codes: int = 0  # of the images, if they are tokens: the positions with a code as target


def rows_of(setup: Setup) -> list[Row]:
    """The kinds of rows that the run has."""
    rows = [text_row(1 - setup.image_share, setup.sequence_length), image_row(setup)]
    return [row for row in rows if row.share]


def text_row(share: float, length: int) -> Row:
    """One document that fills the row, which has the most pairs of a query and a key, and the most logits."""
    return Row(share, torch.zeros(1, length, dtype=torch.int64), torch.full((1, length), TEXT), length - 1, 0)


def image_row(setup: Setup) -> Row:
    """Documents BOS caption [images] EOS, as many as fit; what remains is a text.

    Raises:
        InputError: The images of a document do not fit into a row.
    """
    length, number, patches = setup.sequence_length, setup.images_per_example, setup.patches
    room = room_for_text(length, patches, number)
    if room < 1:
        raise InputError(
            f"data.sequence_length {length} is too short for {number} x {patches} patches with their markers and one "
            f"text token; use at least {length - room + 1}"
        )
    caption = min(CAPTION, room)
    image = [TEXT, *[0] * patches, TEXT]  # with BOI and EOI
    document = torch.tensor([*[TEXT] * (1 + caption), *image * number, TEXT])
    fitting = length // len(document)
    rest = length - fitting * len(document)
    image_ids = torch.cat([document.repeat(fitting), torch.full((rest,), TEXT)])
    starts = (image_ids >= 0) & (image_ids.roll(1) < 0)  # first patch of each image
    image_ids = torch.where(image_ids >= 0, starts.cumsum(0) - 1, TEXT)
    document_ids = torch.arange(fitting + 1).repeat_interleave(torch.tensor([len(document)] * fitting + [rest]))
    targets = fitting * (caption + 2) + max(rest - 1, 0)  # caption, BOI and EOS
    images = fitting * number
    if setup.images_are_tokens:  # to the net they are like text
        image_ids = torch.full_like(image_ids, TEXT)
    codes = images * patches if setup.images_are_tokens else 0
    return Row(setup.image_share, document_ids[None], image_ids[None], targets, images, codes)
