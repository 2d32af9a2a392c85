"""Documents of prompts."""

import pytest
import torch

from lit_transfusion.data.packing import room_for_text
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.types import Document, Example, TextSegment
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import draw, draw_after, edit
from lit_transfusion.generation.prompts import caption_read, caption_tokens, prompt_document
from lit_transfusion.generation.settings import Sampling


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline()


def test_bos_first_then_the_picture_then_the_words(pipeline):
    """Both picture and words are optional."""
    bos, words = pipeline.tokenizer.bos, pipeline.tokenizer.encode("a red circle")
    picture = torch.rand(3, 4, 4)
    assert prompt_document(pipeline) == Document((TextSegment((bos,)),))
    assert prompt_document(pipeline, "a red circle") == Document((TextSegment((bos, *words)),))
    before, image, after = prompt_document(pipeline, "a red circle", picture).segments
    assert (before, after) == (TextSegment((bos,)), TextSegment(words))
    assert torch.equal(image.latents, picture)


# Texts that are too long


def test_a_caption_of_data_is_cut_as_in_training(pipeline):
    caption = "two green triangles on white and a blue square"
    tokens = pipeline.tokenizer.encode(caption)
    assert caption_tokens(pipeline, caption) == tokens and caption_read(pipeline, caption) == caption
    pipeline.sequence_length = 12  # 8 of them are BOS, EOS, BOI, four patches and EOI
    assert caption_tokens(pipeline, caption) == tokens[:4]
    assert caption_read(pipeline, caption) == pipeline.tokenizer.decode(tokens[:4])
    (text,) = prompt_document(pipeline, caption, cut=True).segments
    assert text.token_ids == (pipeline.tokenizer.bos, *tokens[:4])
    pipeline.sequence_length = 18  # space for another image
    *_, text = prompt_document(pipeline, caption, torch.zeros(3, 4, 4), cut=True).segments
    assert text.token_ids == tokens[:4]


@pytest.mark.parametrize("caption_first", [0.0, 1.0])
def test_the_cut_is_where_the_recipe_cuts(pipeline, caption_first):
    """For each row length, a held-out caption is cut at the same token as in training."""
    caption, recipe = "two green triangles on white", Recipe(caption_first, caption_dropout=0.0)
    for length in range(9, 40):
        pipeline.sequence_length = length
        room = room_for_text(length, pipeline.patches_per_image, 1)
        example = Example(torch.zeros(3, 4, 4), (caption,))
        trained = recipe.document(example, pipeline.tokenizer, room, torch.Generator())
        ids = [i for part in trained.segments if isinstance(part, TextSegment) for i in part.token_ids]
        assert tuple(i for i in ids if i not in (pipeline.tokenizer.bos, pipeline.tokenizer.eos)) == caption_tokens(
            pipeline, caption
        )


@pytest.mark.parametrize("room", [0, 1, 5])
def test_drawing_and_editing_cut_texts_from_data(pipeline, room):
    """Without `cut`, they are an error."""
    caption, picture = "two green triangles on white and a blue square", torch.zeros(1, 3, 4, 4)
    tokens, sampling = pipeline.tokenizer.encode(caption), Sampling(num_inference_steps=1)
    cut = TextSegment((pipeline.tokenizer.bos, *tokens[:room]))
    pipeline.sequence_length = 8 + room
    expected = draw_after(pipeline, [Document((cut,))], sampling, None, None)
    torch.testing.assert_close(draw(pipeline, [caption], sampling, cut=True), expected)
    with pytest.raises(InputError, match=f"{len(tokens)} tokens.* room for {room + 1} beside an image"):
        draw(pipeline, [caption], sampling)
    pipeline.sequence_length = 14 + room
    assert edit(pipeline, picture, [caption], sampling, cut=True)[0].shape == picture[0].shape
    with pytest.raises(InputError, match=f"{len(tokens)} tokens.* room for {room + 1} beside 2 images"):
        edit(pipeline, picture, [caption], sampling)
