"""Descriptions of a model's own drawings, by a model with scripted texts."""

import sys
from dataclasses import replace

import pytest
import torch
from single_shape import given

from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.evaluation.recaption import RecaptionConsistency

PROMPTS = ["a red circle and a blue square", "two green triangles on white", "one black cross on the left side"]


@pytest.fixture
def describe(make_subject, script):
    """Makes a subject whose model writes these texts for its drawings; it has no other pictures."""

    def describe(*texts):
        subject = make_subject(len(texts), prompts=PROMPTS, pictures=None, written=None)
        subject.sampling = replace(subject.sampling, max_new_tokens=64)
        tokenizer = subject.pipeline.tokenizer
        script(*[[*tokenizer.encode(text), tokenizer.eos] for text in texts])
        return subject

    return describe


def test_highest_for_the_prompts_and_near_0_for_prompts_of_others(describe):
    pytest.importorskip("pycocoevalcap")
    same = RecaptionConsistency()(describe(*PROMPTS))
    assert same == pytest.approx({"recaption_cider": 10, "recaption_bleu": 1})
    others = RecaptionConsistency()(describe(*PROMPTS[1:], PROMPTS[0]))
    assert others["recaption_cider"] < 1 and others["recaption_bleu"] < 0.01
    one = RecaptionConsistency()(describe(PROMPTS[0], "?", "?"))
    assert one["recaption_cider"] == pytest.approx(10 / 3)


def test_each_drawing_is_described_by_the_model_that_drew_it(make_subject):
    pytest.importorskip("pycocoevalcap")
    subject = make_subject(3)
    seen = []
    drawn = subject.drawn
    subject.pipeline.net.register_forward_pre_hook(lambda net, args: seen.extend(given(args)[0]))
    RecaptionConsistency()(subject)
    assert torch.equal(torch.stack(seen), torch.stack(drawn))


def test_missing_package_is_an_error_before_anything_is_drawn(make_subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(Unavailable, match="pycocoevalcap"):
        RecaptionConsistency()(make_subject(prompts=None))
