"""The perplexity of texts against closed forms, and against the likelihood of each text."""

import math

import pytest
import torch
import torch.nn.functional as F
from given_examples import Texts, random_examples, subject_of

from lit_transfusion.data.sources import Mix
from lit_transfusion.data.types import Skipped, TextExample
from lit_transfusion.evaluation import Perplexity, TextPerplexity
from lit_transfusion.evaluation.metric import Subject, Unavailable

TEXTS = [TextExample("a red circle"), TextExample("zwei grüne Dreiecke", complete=False), TextExample("two\nblue")]


def test_uniform_model_needs_the_bits_of_its_vocabulary_for_each_token(make_pipeline):
    pipeline = make_pipeline()
    torch.nn.init.zeros_(pipeline.net.head.weight)
    found = TextPerplexity()(Subject(pipeline, Texts(TEXTS)))
    size = pipeline.tokenizer.vocab_size
    assert list(found) == list(TextPerplexity.columns)
    assert found["text_loss"] == pytest.approx(math.log(size), rel=1e-5)
    assert found["text_perplexity"] == pytest.approx(size, rel=1e-5)
    num_tokens = sum(len(pipeline.tokenizer.encode(text.text)) for text in TEXTS) + 2  # EOS of the complete texts
    assert found["text_bits_per_byte"] == pytest.approx(num_tokens * math.log2(size) / (12 + 20 + 8), rel=1e-5)


def test_long_texts_are_read_in_pieces_as_in_training(make_pipeline):
    pipeline = make_pipeline()
    pipeline.sequence_length = 6  # four tokens between BOS and EOS
    tokenizer, losses = pipeline.tokenizer, []
    for text, complete in TEXTS:
        tokens = tokenizer.encode(text)
        for start in range(0, len(tokens), 4):
            piece = [tokenizer.bos, *tokens[start : start + 4]]
            piece += [tokenizer.eos] * (complete and start + 4 >= len(tokens))
            ids, positions = torch.tensor([piece]), torch.arange(len(piece))
            with torch.no_grad():
                logits = pipeline.net(
                    ids, positions[None], torch.zeros_like(ids), torch.full_like(ids, -1), [], positions
                ).logits
            losses.append(F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none"))
    found = TextPerplexity()(Subject(pipeline, Texts(TEXTS), batch_size=2))
    assert found["text_loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_texts_of_a_mix_are_measured_beside_its_pictures(make_pipeline):
    pictures = subject_of(make_pipeline()).source
    pictures.captions = lambda: []
    mix = Mix({"text": Texts([Skipped("x", "bad"), *TEXTS]), "pictures": pictures})
    mixed = Subject(make_pipeline(), mix, num_examples=2)
    assert mixed.texts == TEXTS[:2] and mixed.prompts == [example.captions[0] for example in random_examples()[:2]]


def test_source_without_texts_or_without_pictures(make_pipeline):
    with pytest.raises(Unavailable, match="held-out texts"):
        TextPerplexity()(subject_of(make_pipeline()))
    with pytest.raises(Unavailable, match=r"captioned pictures, but data\.source Texts has none"):
        Perplexity()(Subject(make_pipeline(), Texts(TEXTS)))
