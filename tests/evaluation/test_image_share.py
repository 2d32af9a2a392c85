"""The share of prompts after which an image begins, against samples that draw it."""

from dataclasses import replace

import pytest

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.image_share import ImageShare
from lit_transfusion.generation.engine import generate
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.settings import Sampling


def test_counts_the_prompts_after_which_the_model_writes_boi(make_subject, script):
    subject = make_subject(prompts=["a"] * 5)  # two batches
    boi, eos = subject.pipeline.tokenizer.boi, subject.pipeline.tokenizer.eos
    script([boi], [eos], [60, 61, boi], [60, 61, 62, boi], [60, eos])
    assert ImageShare(max_new_tokens=3)(subject) == {"image_share": 2 / 5}


def test_share_equals_that_of_samples_that_draw(make_subject):
    subject = make_subject(8)
    net, tokenizer = subject.pipeline.net, subject.pipeline.tokenizer

    def speak(net, args, output):
        logits = output.logits.clone()
        logits[:, [tokenizer.boi, tokenizer.eos]] += 4
        return output._replace(logits=logits)

    net.register_forward_hook(speak)
    subject.sampling = replace(subject.sampling, temperature=1.0)
    documents = [prompt_document(subject.pipeline, prompt) for prompt in subject.prompts]
    drawing = Sampling(num_inference_steps=1, guidance_scale=1, temperature=1, max_new_tokens=8)
    drawn = sum(len(sample.images) for sample in generate(subject.pipeline, documents, drawing))
    assert 0 < drawn < 8
    assert ImageShare(max_new_tokens=8)(subject) == {"image_share": drawn / 8}


def test_draws_nothing(make_subject, script):
    subject = make_subject(2, prompts=["a", "b"])
    script(*[[subject.pipeline.tokenizer.boi]] * 2)
    passes = []
    subject.pipeline.net.register_forward_pre_hook(lambda net, args: passes.append(len(args[4])))
    assert ImageShare()(subject) == {"image_share": 1.0}
    assert passes == [0]  # one forward pass, for the prompts, which have no image


def test_needs_at_least_one_token(make_subject):
    with pytest.raises(InputError, match=r"ImageShare\.max_new_tokens 0 .*at least 1"):
        ImageShare(max_new_tokens=0)
