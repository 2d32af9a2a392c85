"""The gap is 0 if captions are not seen and positive if they are used; no example gets its own caption."""

from collections import Counter

import pytest
import torch
from given_examples import subject_of, train

from lit_transfusion.data.grammar import caption_first
from lit_transfusion.data.types import Example
from lit_transfusion.diffusion import DDPM
from lit_transfusion.evaluation.caption_use import CaptionUseGap, others_captions
from lit_transfusion.evaluation.metric import Unavailable


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline(noise=DDPM(prediction_type="sample"))


def black_and_white():
    """Black or white pictures with captions for their colour; the same captions for each colour."""
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
    # Black instead of white is an error of 2 at each pixel; if the noisy picture shows the colour, there is no error.
    assert 0.1 < found["caption_use_gap"] <= 4.5
    assert found["caption_use_gap_relative"] > 100


def examples_with(*captions):
    return [Example(torch.zeros(3, 4, 4), own) for own in captions]


@pytest.mark.parametrize("seed", range(20))
def test_no_example_gets_its_own_caption(seed):
    """The caption that the first two share can only go to the third, so only one permutation is valid."""
    examples = examples_with(("x", "a"), ("x", "b"), ("c",))
    assert others_captions(examples, ["x", "b", "c"], seed) == ["b", "c", "x"]


def test_captions_are_permuted():
    captions = [f"caption {i % 7}" for i in range(100)]
    examples = examples_with(*((caption, "something") for caption in captions))
    permuted = others_captions(examples, captions, seed=0)
    assert Counter(permuted) == Counter(captions)
    assert all(new != old for new, old in zip(permuted, captions, strict=True))
    assert others_captions(examples, captions, seed=0) == permuted != others_captions(examples, captions, seed=1)


def test_captions_that_are_too_similar():
    with pytest.raises(Unavailable, match="captions are too similar"):
        others_captions(examples_with(("a",), ("a",), ("b",)), ["a", "a", "b"], seed=0)
