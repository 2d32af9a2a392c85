"""Ranking of captions after a picture: chance, a uniform model, a reference, and a trained model."""

import pytest
import torch
from given_examples import CAPTIONS, random_examples, subject_of, train

from lit_transfusion.data.grammar import image_first
from lit_transfusion.data.types import Example
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.likelihood import caption_given_image, text_likelihoods
from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.evaluation.ranked_captions import RankedCaptions, firsts


def test_firsts():
    assert firsts([-1, -2, -3, -1, -2, -1], 2) == [1, 0, 0]
    assert firsts([-1, -1, -1, -2, 0, -3], 3) == pytest.approx([1 / 3, 0])


def test_a_uniform_model_chooses_the_fewest_tokens(make_pipeline):
    """With all captions as choices, the same caption wins for each picture, and is right for one."""
    pipeline = make_pipeline()
    torch.nn.init.zeros_(pipeline.net.head.weight)
    num_tokens = [len(pipeline.tokenizer.encode(caption)) for caption in CAPTIONS]
    by_byte = [count / len(caption) for count, caption in zip(num_tokens, CAPTIONS, strict=True)]
    assert num_tokens.count(min(num_tokens)) == by_byte.count(min(by_byte)) == 1
    assert num_tokens.index(min(num_tokens)) != by_byte.index(min(by_byte))  # otherwise the two columns could be equal
    found = RankedCaptions(num_choices=5)(subject_of(pipeline))
    assert found == {name: 1 / 5 for name in RankedCaptions.columns}


@pytest.mark.parametrize("num_choices", [2, 3])
def test_a_blind_model_that_knows_how_frequent_captions_are_gets_chance(make_pipeline, num_choices):
    """The model has learned the captions, and all pictures are equal. With distractors drawn from the different
    captions, it would be right far more often, since it knows the frequent ones."""
    captions = (
        [CAPTIONS[0]] * 8 + [CAPTIONS[1]] * 4 + [CAPTIONS[2]] * 2 + ["green", "red", "a dot", "two dots", "qx", "xq"]
    )
    examples = random_examples(captions)
    pipeline = make_pipeline()
    tokenizer = pipeline.tokenizer
    documents = [image_first(tokenizer.encode(e.captions[0]), e.image, tokenizer, max_timestep=100) for e in examples]
    train(pipeline, documents, steps=40)
    torch.nn.init.zeros_(pipeline.net.patcher.proj_in.weight)
    read = [caption_given_image(pipeline, caption, examples[0].image) for caption in (CAPTIONS[0], CAPTIONS[2], "qx")]
    frequent, rare, once = (likelihood.log_probability for likelihood in text_likelihoods(pipeline, read))
    assert frequent > rare > once  # it has learned that
    found = RankedCaptions(num_choices=num_choices)(subject_of(pipeline, examples))
    assert list(found.values()) == pytest.approx([1 / num_choices] * 2)
    metric = RankedCaptions(num_choices=num_choices)
    assert metric.baselines(subject_of(pipeline, examples)) == {"chance": {name: 1 / num_choices for name in found}}


def test_chance_if_all_captions_are_equally_likely(make_pipeline):
    pipeline = make_pipeline()
    torch.nn.init.zeros_(pipeline.net.head.weight)
    found = RankedCaptions(num_choices=3)(subject_of(pipeline, random_examples(["qx", "xq", "zx", "xz"])))
    assert list(found.values()) == pytest.approx([1 / 3] * 2)


def test_equals_choosing_one_document_at_a_time(make_pipeline):
    pipeline, examples = make_pipeline(), random_examples([f"{a} {b}" for a in CAPTIONS for b in CAPTIONS])
    subject, metric = subject_of(pipeline, examples, batch_size=9), RankedCaptions(num_choices=3)
    right = {"ranked_captions": 0, "ranked_captions_unnormalised": 0}
    groups = metric._groups(examples, subject.prompts)
    assert len(groups) == 8  # one of 25 pictures is left out
    for group in groups:
        for i in group:
            scores = {
                examples[j].captions[0]: text_likelihoods(
                    pipeline, [caption_given_image(pipeline, examples[j].captions[0], examples[i].image)]
                )[0][0]
                for j in group
            }
            right["ranked_captions"] += max(scores, key=lambda c: scores[c] / len(c)) == examples[i].captions[0]
            right["ranked_captions_unnormalised"] += max(scores, key=scores.get) == examples[i].captions[0]
    assert right["ranked_captions"] != right["ranked_captions_unnormalised"]  # otherwise the two columns could be equal
    assert metric(subject) == {name: count / 24 for name, count in right.items()}
    assert {name: sum(subject.each[name]) for name in right} == right and len(subject.each["ranked_captions"]) == 24


def test_a_model_that_has_learned_to_describe_its_pictures(make_pipeline):
    shades = [("a red circle", -1.0), ("green", 0.0), ("two green triangles on white", 1.0)]
    examples = [Example(torch.full((3, 4, 4), value), (caption,)) for caption, value in shades]
    pipeline = make_pipeline()
    tokenizer = pipeline.tokenizer
    documents = [image_first(tokenizer.encode(e.captions[0]), e.image, tokenizer, max_timestep=100) for e in examples]
    train(pipeline, documents, steps=60)
    assert list(RankedCaptions(num_choices=3)(subject_of(pipeline, examples)).values()) == [1, 1]


def test_no_picture_is_in_two_groups_and_few_are_left_out():
    examples = random_examples([f"caption {i // 2}" for i in range(100)])
    captions = [example.captions[0] for example in examples]
    groups = RankedCaptions(num_choices=4)._groups(examples, captions)
    assert all(len(group) == len({captions[i] for i in group}) == 4 for group in groups)
    asked = [i for group in groups for i in group]
    assert len(set(asked)) == len(asked) >= 96
    assert groups != RankedCaptions(num_choices=4, seed=1)._groups(examples, captions)


def test_a_wrong_choice_is_never_a_caption_of_the_picture():
    own = ("a", "b", "c")
    examples = [Example(torch.zeros(3, 4, 4), own)] * 3 + [Example(torch.zeros(3, 4, 4), (word,)) for word in "de"]
    (group,) = RankedCaptions(num_choices=3)._groups(examples, ["a", "b", "c", "d", "e"])
    assert {3, 4} < set(group)  # with one of the first three; the other two are left out
    with pytest.raises(Unavailable, match=r"num_choices 4 .*5 different captions of 5 pictures"):
        RankedCaptions(num_choices=4)._groups(examples, ["a", "b", "c", "d", "e"])


def test_needs_at_least_two_choices():
    with pytest.raises(InputError, match=r"RankedCaptions\.num_choices 1 .*at least 2"):
        RankedCaptions(num_choices=1)
