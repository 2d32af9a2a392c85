"""The font of a caption: one that has its characters."""

import functools
import logging
import unicodedata
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

SIZE = 12  # pixels
UNUSUAL = ("bold", "italic", "oblique", "black", "light", "thin", "mono", "lastresort")  # in the name of a file
NO_CHARACTER = "\U0010ffff"  # drawn as what a font draws in place of a character that it does not have

log = logging.getLogger(__name__)
_told: set[str] = set()  # characters that a warning named


def font_for(text: str) -> Font:
    """Pillow's own font, which has ASCII alone, or the font that has the most of the characters of `text`."""
    # Letters, numbers and signs. Marks and what is not seen come with the letters.
    characters = frozenset(character for character in text if unicodedata.category(character)[0] in "LNPS")
    font, missing = best_font(characters)
    if new := sorted(missing - _told):
        _told.update(new)
        log.warning(
            "no font of this machine has the characters %s of captions, which are drawn as boxes: install one, such as "
            "the package fonts-noto-cjk (Chinese, Japanese, Korean) or fonts-noto (other scripts) of Debian and Ubuntu",
            "".join(new[:20]) + ("…" if len(new) > 20 else ""),
        )
    return font


@functools.lru_cache(1024)
def best_font(characters: frozenset[str]) -> tuple[Font, frozenset[str]]:
    """A font, and which of the characters it lacks."""
    best = ImageFont.load_default(SIZE)
    missing = frozenset(character for character in characters if not has(best, character))
    for path in font_files() if missing else ():
        font = opened(path)
        if font is None:
            continue
        lacks = frozenset(character for character in characters if not has(font, character))
        if len(lacks) < len(missing):
            best, missing = font, lacks
        if not missing:
            break
    return best, missing


@functools.lru_cache(1)
def font_files() -> list[str]:
    """matplotlib's DejaVu Sans, then the fonts of this machine, upright and regular ones first."""
    from matplotlib import font_manager, get_data_path  # here, since it takes half a second

    def unusual(path: str) -> tuple[bool, str]:
        name = Path(path).stem.lower()
        return any(word in name for word in UNUSUAL), name

    own = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    return [own, *sorted(font_manager.findSystemFonts(), key=unusual)]


@functools.lru_cache(64)
def opened(path: str) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, SIZE)
    except OSError:  # a font of bitmaps in another size, or none that Pillow can read
        return None


def has(font: Font, character: str) -> bool:
    """Whether a font draws a character, and not what it draws for all those that it does not have."""
    drawn = drawn_as(font, character)
    return any(drawn[1]) and drawn != drawn_as(font, NO_CHARACTER)


def drawn_as(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
