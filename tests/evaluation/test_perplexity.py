"""Perplexities against closed forms, and against a direct computation with the net."""

import math

import pytest
import torch
import torch.nn.functional as F
from given_examples import CAPTIONS, random_examples, subject_of
from single_shape import run

from lit_transfusion.evaluation.perplexity import Perplexity


def test_the_perplexity_of_a_uniform_model_is_its_vocabulary_size(make_pipeline):
    pipeline = make_pipeline()
    torch.nn.init.zeros_(pipeline.net.head.weight)
    captions = ["a red circle", "zwei grüne Dreiecke"]  # 12 bytes; 19 letters in 20 bytes
    found = Perplexity()(subject_of(pipeline, random_examples(captions)))
    vocab_size = pipeline.tokenizer.vocab_size
    assert found["perplexity"] == pytest.approx(vocab_size, rel=1e-5)
    assert found["perplexity_given_image"] == pytest.approx(vocab_size, rel=1e-5)
    num_tokens = sum(len(pipeline.tokenizer.encode(caption)) for caption in captions)
    assert found["bits_per_byte"] == pytest.approx(num_tokens * math.log2(vocab_size) / 32, rel=1e-5)
    assert list(found) == list(Perplexity.columns)


def test_equals_a_direct_computation(make_pipeline):
    """One document at a time; the perplexity is over all tokens, not a mean over captions."""
    pipeline = make_pipeline()
    tokenizer, losses, num_bytes = pipeline.tokenizer, {"alone": [], "beside": []}, 0
    for example in random_examples():
        words = list(tokenizer.encode(example.captions[0]))
        num_bytes += len(example.captions[0])
        picture = [tokenizer.boi, *[0] * 4, tokenizer.eoi]
        for name, before, images in (("alone", [], None), ("beside", picture, example.image[None])):
            tokens = torch.tensor([[tokenizer.bos, *before, *words]])
            image_ids = torch.tensor([[-1, *[-1, 0, 0, 0, 0, -1][: len(before)], *[-1] * len(words)]])
            with torch.no_grad():
                logits = run(
                    pipeline.net,
                    tokens,
                    torch.arange(tokens.shape[1])[None],
                    torch.zeros_like(tokens),
                    image_ids,
                    torch.zeros(0, 3, 4, 4) if images is None else images,
                    torch.zeros(0 if images is None else 1, dtype=torch.int64),
                    torch.arange(tokens.shape[1]),
                ).logits
            losses[name].append(F.cross_entropy(logits[-len(words) - 1 : -1], torch.tensor(words), reduction="none"))
    alone, beside = (torch.cat(parts).double() for parts in losses.values())
    for batch_size in (2, 64):
        found = Perplexity()(subject_of(pipeline, batch_size=batch_size))
        assert found["perplexity"] == pytest.approx(float(alone.mean().exp()), rel=1e-5)
        assert found["perplexity_given_image"] == pytest.approx(float(beside.mean().exp()), rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(float(alone.sum()) / math.log(2) / num_bytes, rel=1e-5)
    mean_of_each = torch.stack([part.mean().exp() for part in losses["alone"]]).mean()
    assert float(mean_of_each) != pytest.approx(found["perplexity"], rel=1e-3)


def test_bytes_are_those_of_cut_captions(make_pipeline):
    pipeline = make_pipeline()
    torch.nn.init.zeros_(pipeline.net.head.weight)
    pipeline.sequence_length = 11  # three tokens fit with a picture
    read = [pipeline.tokenizer.decode(pipeline.tokenizer.encode(caption)[:3]) for caption in CAPTIONS]
    num_tokens = sum(min(3, len(pipeline.tokenizer.encode(caption))) for caption in CAPTIONS)
    bits = num_tokens * math.log2(pipeline.tokenizer.vocab_size)
    assert Perplexity()(subject_of(pipeline))["bits_per_byte"] == pytest.approx(bits / len("".join(read)), rel=1e-5)
