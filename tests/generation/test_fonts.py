"""A caption is drawn in a font that has its characters; characters without a font are reported once."""

import logging

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import ImageFont

from lit_transfusion.generation import fonts
from lit_transfusion.generation.fonts import best_font, font_files, font_for
from lit_transfusion.generation.pictures import captioned_grid, wrap


def make_font(path, characters, height=1000):
    """Make a font that draws the given characters as blocks and all others as frames."""

    def glyph(*squares):
        pen = TTGlyphPen(None)
        for low, high in squares:
            for number, point in enumerate(((low, low), (low, high), (high, high), (high, low))):
                (pen.lineTo if number else pen.moveTo)(point)
            pen.closePath()
        return pen.glyph()

    names = {ord(character): f"c{ord(character):x}" for character in characters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    glyphs = {".notdef": glyph((0, 700), (650, 50))} | {name: glyph((0, 900)) for name in names.values()}
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=height, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=height, usWinAscent=height, usWinDescent=200)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with no fonts except those in a folder."""
    monkeypatch.setattr(font_manager, "X11FontDirectories", [str(tmp_path)])
    monkeypatch.setattr(font_manager, "OSXFontDirectories", [])
    monkeypatch.setattr(font_manager, "_get_fontconfig_fonts", list)
    monkeypatch.setattr(fonts, "_warned", set())
    for cached in (best_font, font_files):
        cached.cache_clear()
    yield tmp_path
    for cached in (best_font, font_files):
        cached.cache_clear()


def test_ascii_captions_use_pillows_own_font(machine, caplog):
    make_font(machine / "all.ttf", "abcß猫")
    assert font_for("2 cats: (a) & b!").getname() == ImageFont.load_default(12).getname()
    assert not caplog.messages


@pytest.mark.parametrize("text", ["ein süßer Bär – 2 × rot", "рыжий кот", "κόκκινη γάτα", "Կատու", "كلب", "♥ 5 ≤ 6"])
def test_alphabets_that_come_with_matplotlib(machine, text, caplog):
    assert font_for(text).getname()[0] == "DejaVu Sans"
    assert not caplog.messages


def test_the_font_with_the_most_characters_is_used_for_each_text(machine, caplog):
    make_font(machine / "other-Regular.ttf", "犬")
    make_font(machine / "cjk-Bold.ttf", "赤い猫a")
    make_font(machine / "cjk-Regular.ttf", "赤い猫a")
    (machine / "broken.ttf").write_bytes(b"no font")
    assert font_for("赤い猫 a").getname()[0] == "cjk-Regular"
    assert font_for("犬").getname()[0] == "other-Regular"
    assert font_for("a cat").getname() == ImageFont.load_default(12).getname()
    assert not caplog.messages
    assert font_for("赤い猫 犬").getname()[0] == "cjk-Regular"  # it has the most


def test_characters_without_a_font_are_reported_once_with_what_to_install(machine, caplog):
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        for text in ("猫", "猫 a", "a 猫"):
            font_for(text)
    (message,) = caplog.messages
    assert "猫" in message and "fonts-noto-cjk" in message
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        captioned_grid(torch.zeros(2, 3, 8, 8), ["猫", "犬"])
    assert "犬" in caplog.messages[1] and "猫" not in caplog.messages[1]


def test_caption_is_drawn_with_the_font_that_has_it(machine):
    """The characters are drawn as filled blocks, not as frames or boxes."""
    make_font(machine / "cjk.ttf", "猫")
    page = captioned_grid(torch.ones(1, 3, 112, 112), ["猫猫"])
    below = torch.frombuffer(bytearray(page.convert("L").tobytes()), dtype=torch.uint8).view(page.height, page.width)
    dark = (below[118:] < 60).sum().item()
    assert dark > 1.5 * 10 * 10  # two of 11 x 11 pixels
    assert page.height < 150


def test_a_high_font_stays_within_its_cell(machine):
    make_font(machine / "high.ttf", "猫", height=3000)
    low, high = (captioned_grid(torch.ones(1, 3, 112, 112), [text * 40]) for text in ("a", "猫"))
    assert high.height > low.height
    below = torch.frombuffer(bytearray(high.convert("L").tobytes()), dtype=torch.uint8).view(high.height, high.width)
    assert (below[-4:] == 238).all() and (below[118:] < 60).sum() > 20 * 10 * 10


def test_text_without_spaces_is_broken_to_the_width(machine):
    make_font(machine / "cjk.ttf", "猫犬")
    font = font_for("猫犬")
    lines = wrap("猫犬" * 10, font, 100).split("\n")
    assert "".join(lines) == "猫犬" * 10 and all(font.getlength(line) <= 100 for line in lines) and len(lines) == 3
    assert wrap("猫" * 1000, font, 100).count("\n") == 3 and wrap("猫" * 1000, font, 100).endswith("…")
    default = ImageFont.load_default(12)
    assert wrap("a red circle left of two blue squares", default, 112) == "a red circle left of\ntwo blue squares"
    assert wrap("猫", font, 1) == "猫" and wrap("", font, 100) == ""
