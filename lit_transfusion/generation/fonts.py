"""Choose a font that has the characters of a caption."""

import functools
import logging
import unicodedata
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

SIZE = 12  # pixels
UNUSUAL = ("bold", "italic", "oblique", "black", "light", "thin", "mono", "lastresort")  # words in file names
NO_CHARACTER = "\U0010ffff"  # in no font: drawn as the font's box for missing characters

log = logging.getLogger(__name__)
_warned: set[str] = set()  # characters that a warning has already named


def font_for(text: str) -> Font:
    """Pillow's own font, which has only ASCII, or the font that has the most of the characters of `text`."""
    # Letters, numbers, punctuation and symbols. Combining marks and invisible characters depend on the letters.
    characters = frozenset(character for character in text if unicodedata.category(character)[0] in "LNPS")
    font, missing = best_font(characters)
    if new := sorted(missing - _warned):
        _warned.update(new)
        log.warning(
            "no font on this machine has the characters %s, so captions show them as boxes; install a font, such as "
            "the "
            "Debian or Ubuntu package fonts-noto-cjk (Chinese, Japanese, Korean) or fonts-noto (other scripts)",
            "".join(new[:20]) + ("…" if len(new) > 20 else ""),
        )
    return font


@functools.lru_cache(1024)
def best_font(characters: frozenset[str]) -> tuple[Font, frozenset[str]]:
    """The font that has the most of the characters, and the characters that it lacks."""
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
    """Files of matplotlib's DejaVu Sans, then of the fonts on this machine, upright and regular ones first."""
    from matplotlib import font_manager, get_data_path  # imported here, since it takes half a second

    def unusual(path: str) -> tuple[bool, str]:
        name = Path(path).stem.lower()
        return any(word in name for word in UNUSUAL), name

    own = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    return [own, *sorted(font_manager.findSystemFonts(), key=unusual)]


@functools.lru_cache(64)
def opened(path: str) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, SIZE)
    except OSError:  # a bitmap font of another size, or a file that Pillow cannot read
        return None


def has(font: Font, character: str) -> bool:
    """Whether a font has a character: what it draws is neither empty nor its box for missing characters."""
    drawn = drawn_as(font, character)
    return any(drawn[1]) and drawn != drawn_as(font, NO_CHARACTER)


def drawn_as(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
