"""Tests of clean copies: a caption sees the image without noise, and the noised image is only learned."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from single_shape import run

from lit_transfusion.data.grammar import image_first
from lit_transfusion.data.packing import collate, flatten
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import TEXT, Document, EditExample, Example, ImageSegment, TextSegment
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion

PATCHES = 4


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a red circle", "two blue squares"] * 4, 300)


def image(seed=0):
    return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def packed(documents, tokenizer, length=64):
    return collate(
        [[flatten(d, tokenizer, lambda image: PATCHES) for d in documents]], length, tokenizer.pad, (3, 4, 4)
    )


def test_layout_of_a_clean_copy(tokenizer):
    batch = packed([image_first((7, 8), image(), tokenizer, clean_copy=True)], tokenizer)
    # BOS BOI noised clean EOI 7 8 EOS
    assert batch.image_ids[0, :14].tolist() == [TEXT] * 2 + [0] * 4 + [1] * 4 + [TEXT] * 4
    assert batch.private[0, :14].tolist() == [TEXT] * 2 + [0] * 4 + [TEXT] * 8
    assert batch.positions[0, :14].tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7, 8, 9]
    (group,) = batch.image_groups
    assert torch.equal(*group.images)
    assert group.max_timesteps.tolist()[1] == 0 and group.max_timesteps[0] > 0
    assert group.learned.tolist() == [0]
    assert group.at.tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    assert batch.labels[0][batch.target_positions].tolist() == [tokenizer.boi, 7, 8, tokenizer.eos]


def test_without_clean_copies_nothing_is_private(tokenizer):
    batch = packed([image_first((7,), image(), tokenizer)], tokenizer)
    assert batch.private is None and batch.private_ids.shape == (0, 64)


segments = st.lists(st.sampled_from(["text", "image", "copied"]), min_size=1, max_size=5)


@given(documents=st.lists(segments, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_positions_are_those_of_the_document_without_noised_copies(tokenizer, documents):
    """This holds for any number of copies: what stays when they are removed is an ordinary document."""

    def document(kinds, copies):
        made = {"text": TextSegment((7, 8)), "image": ImageSegment(image())}
        made["copied"] = ImageSegment(image(), clean_copy=copies)
        return Document((TextSegment((tokenizer.bos,)), *(made[kind] for kind in kinds)))

    ours, plain = (packed([document(k, copies) for k in documents], tokenizer, 256) for copies in (True, False))
    kept = torch.ones(256, dtype=torch.bool) if ours.private is None else ours.private[0] < 0
    number = int(plain.lengths)
    for name in ("tokens", "labels", "positions", "document_ids"):
        assert getattr(ours, name)[0, kept][:number].tolist() == getattr(plain, name)[0, :number].tolist(), name
    assert int(ours.lengths) - (~kept).sum() == number


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"rope": "2d", "modality_weights": "all", "qk_norm": True}])
def test_caption_sees_the_clean_image_and_the_noised_one_is_learned_as_before(tokenizer, changes):
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=48, **changes)
    net = Transfusion(tokenizer.vocab_size, config, LinearPatcher(3, 32, 2), Bidirectional()).eval()

    def read(batch, images, timesteps):
        ids = batch.tokens, batch.positions, batch.document_ids, batch.image_ids
        return run(net, *ids, images, timesteps, batch.target_positions, private=batch.private)

    clean, noisy, t = image()[None], torch.randn(1, 3, 4, 4), torch.tensor([600])
    both = packed([image_first((7, 8), image(), tokenizer, clean_copy=True)], tokenizer)
    one = packed([image_first((7, 8), image(), tokenizer)], tokenizer)
    output = read(both, torch.cat([noisy, clean]), torch.tensor([600, 0]))
    torch.testing.assert_close(output.logits, read(one, clean, 0 * t).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.image_prediction[:1], read(one, noisy, t).image_prediction, atol=1e-5, rtol=1e-5)


def test_the_recipe_copies_images_before_captions(tokenizer):
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe(caption_first=0.5, caption_dropout=0.0, clean_copies=True)
    orders = set()
    for _ in range(20):
        (document,) = recipe.documents(Example(image(), ("a red circle",)), tokenizer, 20, generator)
        first = document.segments[0] == TextSegment((tokenizer.bos,))
        assert document.images[0].clean_copy == first
        orders.add(first)
    assert orders == {True, False}


@pytest.mark.parametrize("learn_input", [False, True])
def test_the_recipe_copies_inputs_of_edits_that_are_learned(tokenizer, learn_input):
    """An input that is not learned is clean already."""
    recipe = Recipe(learn_input=learn_input, clean_copies=True)
    example = EditExample(image(), ("make it blue",), image(1))
    (document,) = recipe.documents(example, tokenizer, 20, torch.Generator().manual_seed(1))
    assert [segment.clean_copy for segment in document.images] == [learn_input, False]
