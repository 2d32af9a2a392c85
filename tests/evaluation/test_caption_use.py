"""The gap is 0 where captions are not seen, and above it where they are used; captions are dealt to strangers only."""

from collections import Counter

import pytest
import torch
from given_examples import subject_of, train

from lit_transfusion.data.recipe import caption_first
from lit_transfusion.data.types import Example
from lit_transfusion.diffusion import DDPM
from lit_transfusion.evaluation.caption_use import CaptionUseGap, others_captions
from lit_transfusion.evaluation.metric import Unavailable


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline(noise=DDPM(prediction_type="sample"))


def black_and_white():
    """Pictures that are all black or all white, and say so; the same captions for all of a kind."""
    shades = [("a red circle", -1.0), ("two green triangles on white", 1.0)]
    return [Example(torch.full((3, 4, 4), value), (caption,)) for caption, value in shades * 4]


def test_no_gap_if_no_position_sees_another(pipeline):
    for block in pipeline.net.transformer.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    found = CaptionUseGap()(subject_of(pipeline, black_and_white()))
    assert list(found) == list(CaptionUseGap.columns)
    assert list(found.values()) == pytest.approx([0, 0], abs=1e-5)


def test_a_gap_once_captions_are_used(pipeline):
    examples = black_and_white()
    untrained = CaptionUseGap()(subject_of(pipeline, examples))
    documents = [
        caption_first(pipeline.tokenizer.encode(example.captions[0]), example.image, pipeline.tokenizer)
        for example in examples
    ]
    found = CaptionUseGap()(subject_of(train(pipeline, documents, steps=60), examples))
    assert found["caption_use_gap"] > 10 * abs(untrained["caption_use_gap"])
    # To draw black for white is to be 2 off at each pixel; where the noisy picture tells which it is, nothing is lost.
    assert 0.1 < found["caption_use_gap"] <= 4.5
    assert found["caption_use_gap_relative"] > 100


def examples_with(*captions):
    return [Example(torch.zeros(3, 4, 4), own) for own in captions]


@pytest.mark.parametrize("seed", range(20))
def test_dealt_to_strangers(seed):
    """The caption that the first two share can only go to the third, so that one deal alone is right."""
    examples = examples_with(("x", "a"), ("x", "b"), ("c",))
    assert others_captions(examples, ["x", "b", "c"], seed) == ["b", "c", "x"]


def test_dealt_as_often_as_they_are():
    captions = [f"caption {i % 7}" for i in range(100)]
    examples = examples_with(*((caption, "something") for caption in captions))
    dealt = others_captions(examples, captions, seed=0)
    assert Counter(dealt) == Counter(captions)
    assert all(new != old for new, old in zip(dealt, captions, strict=True))
    assert others_captions(examples, captions, seed=0) == dealt != others_captions(examples, captions, seed=1)


def test_examples_that_are_all_alike():
    with pytest.raises(Unavailable, match="too alike"):
        others_captions(examples_with(("a",), ("a",), ("b",)), ["a", "a", "b"], seed=0)
