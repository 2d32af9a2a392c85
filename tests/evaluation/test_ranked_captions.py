"""Captions ranked after a picture: chance, a uniform model's choice, a reference, and a model that has learned."""

import pytest
import torch
from given_examples import CAPTIONS, random_examples, subject_of, train

from lit_transfusion.data.document import Example
from lit_transfusion.data.recipe import image_first
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.likelihood import caption_given_image, text_likelihoods
from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.evaluation.ranked_captions import RankedCaptions, share_of_firsts


def test_shares_by_hand():
    assert share_of_firsts([-1, -2, -3, -1, -2, -1], 2) == pytest.approx(1 / 3)
    assert share_of_firsts([-1, -1, -1, -2, 0, -3], 3) == pytest.approx((1 / 3 + 0) / 2)


def test_a_uniform_model_takes_the_fewest_tokens(make_pipeline):
    """With all captions as choices, one of them wins everywhere, and is right where it belongs."""
    pipeline = make_pipeline()
    torch.nn.init.zeros_(pipeline.net.head.weight)
    num_tokens = [len(pipeline.tokenizer.encode(caption)) for caption in CAPTIONS]
    by_byte = [count / len(caption) for count, caption in zip(num_tokens, CAPTIONS, strict=True)]
    assert num_tokens.count(min(num_tokens)) == by_byte.count(min(by_byte)) == 1
    assert num_tokens.index(min(num_tokens)) != by_byte.index(min(by_byte))  # else both columns could be one
    found = RankedCaptions(num_choices=5)(subject_of(pipeline))
    assert found == {"ranked_captions": 1 / 5, "ranked_captions_unnormalised": 1 / 5}
    # A sixth example with the words of the shortest: found when tokens are counted only.
    shortest = CAPTIONS[num_tokens.index(min(num_tokens))]
    again = random_examples([*CAPTIONS, shortest])
    found = RankedCaptions(num_choices=5)(subject_of(pipeline, again))
    assert found == {"ranked_captions": 1 / 6, "ranked_captions_unnormalised": 2 / 6}


def test_chance_where_nothing_tells_the_captions_apart(make_pipeline):
    pipeline = make_pipeline()
    torch.nn.init.zeros_(pipeline.net.head.weight)
    found = RankedCaptions(num_choices=3)(subject_of(pipeline, random_examples(["qx", "xq", "zx", "xz"])))
    assert list(found.values()) == pytest.approx([1 / 3, 1 / 3])


def test_equals_choosing_one_document_at_a_time(make_pipeline):
    pipeline, examples = make_pipeline(), random_examples([f"{a} {b}" for a in CAPTIONS for b in CAPTIONS])
    subject, metric = subject_of(pipeline, examples, batch_size=9), RankedCaptions(num_choices=3)
    right = {"ranked_captions": 0, "ranked_captions_unnormalised": 0}
    for example, others in zip(examples, metric._others(examples, subject.prompts), strict=True):
        assert len({*others, *example.captions}) == 3
        scores = {
            caption: text_likelihoods(pipeline, [caption_given_image(pipeline, caption, example.image)])[0][0]
            for caption in (*others, *example.captions)
        }
        right["ranked_captions"] += max(scores, key=lambda c: scores[c] / len(c)) == example.captions[0]
        right["ranked_captions_unnormalised"] += max(scores, key=scores.get) == example.captions[0]
    assert right["ranked_captions"] != right["ranked_captions_unnormalised"]  # else both columns could be one
    assert metric(subject) == {name: count / 25 for name, count in right.items()}


def test_a_model_that_has_learned_to_read_its_pictures(make_pipeline):
    shades = [("a red circle", -1.0), ("green", 0.0), ("two green triangles on white", 1.0)]
    examples = [Example(torch.full((3, 4, 4), value), (caption,)) for caption, value in shades]
    pipeline = make_pipeline()
    tokenizer = pipeline.tokenizer
    documents = [image_first(tokenizer.encode(e.captions[0]), e.image, tokenizer, max_timestep=100) for e in examples]
    train(pipeline, documents, steps=60)
    assert list(RankedCaptions(num_choices=3)(subject_of(pipeline, examples)).values()) == [1, 1]


def test_a_caption_of_its_own_is_never_among_the_others():
    own = ("a", "b", "c")
    examples = [Example(torch.zeros(3, 4, 4), own)] * 3 + [Example(torch.zeros(3, 4, 4), (word,)) for word in "de"]
    others = RankedCaptions(num_choices=3)._others(examples, ["a", "b", "c", "d", "e"])
    assert [set(drawn) for drawn in others[:3]] == [{"d", "e"}] * 3
    with pytest.raises(Unavailable, match=r"example 0 has 2 different captions of others .* 4 choices need 3"):
        RankedCaptions(num_choices=4)._others(examples, ["a", "b", "c", "d", "e"])


def test_one_choice_is_none():
    with pytest.raises(InputError, match="num_choices 1"):
        RankedCaptions(num_choices=1)
