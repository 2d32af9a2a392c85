"""A source of edits of OpenMoji drawings: a figure gets a skin tone."""

import copy
import re
from typing import Literal, NamedTuple

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.sources.openmoji import OpenMoji
from lit_transfusion.data.types import EditExample

TONES = {"🏻": "light", "🏼": "medium light", "🏽": "medium", "🏾": "medium dark", "🏿": "dark"}
WORDINGS = (
    "make the skin tone {tone}",
    "give it a {tone} skin tone",
    "change the skin colour to {tone}",
)
_TONES = re.compile(f"[{''.join(TONES)}]")


class _Edit(NamedTuple):
    base: int  # index of the yellow drawing
    variant: int  # index of the same drawing with a skin tone
    tone: str


class OpenMojiEdits(Source):
    """Emoji by the OpenMoji project (CC BY-SA 4.0) that get one of five skin tones, often with a matching hair colour.

    It installs with pip: `pip install 'lit-transfusion[openmoji]'`. All edits of one concept (see `OpenMoji`) are in
    the same part, so that the held-out part contains only unseen figures.

    Args:
        image_size: Side of the square pictures, in pixels (set by the data module's `image_size`).
        val_fraction: Share of the concepts that is held out, in [0, 1).
        seed: Chooses another set of concepts to hold out.
    """

    images_per_example = 2

    def __init__(self, image_size: int = 64, val_fraction: float = 0.1, seed: int = 0) -> None:
        super().__init__(image_size, val_fraction)
        self.seed = seed
        self._use(OpenMoji(image_size, val_fraction, skin_tones=True, seed=seed))

    def _use(self, drawings: OpenMoji) -> None:
        self._drawings = drawings
        index_of = {emoji: index for index, emoji in enumerate(drawings.emoji())}
        self._edits = []
        for emoji, variant in index_of.items():
            tones = set(_TONES.findall(emoji))
            base = index_of.get(_TONES.sub("", emoji))
            if len(tones) == 1 and base is not None:  # couples may have two tones
                self._edits.append(_Edit(base, variant, TONES[tones.pop()]))

    def split(self, name: Literal["train", "val"]) -> "OpenMojiEdits":
        part = copy.copy(self)
        part._use(self._drawings.split(name))
        return part

    def __len__(self) -> int:
        return len(self._edits)

    def __getitem__(self, index: int) -> EditExample:
        base, variant, tone = self._edits[index]
        instructions = tuple(wording.format(tone=tone) for wording in WORDINGS)
        return EditExample(self._drawings[base].image, instructions, self._drawings[variant].image)

    def captions(self) -> list[str]:
        return [wording.format(tone=edit.tone) for edit in self._edits for wording in WORDINGS]
