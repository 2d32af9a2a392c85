"""Prompts as documents."""

import pytest
import torch

from lit_transfusion.data.document import Document, TextSegment
from lit_transfusion.generation import prompt_document


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline()


def test_bos_first_then_the_picture_then_the_words(pipeline):
    """Of which either may be missing."""
    bos, words = pipeline.tokenizer.bos, pipeline.tokenizer.encode("a red circle")
    picture = torch.rand(3, 4, 4)
    assert prompt_document(pipeline) == Document((TextSegment((bos,)),))
    assert prompt_document(pipeline, "a red circle") == Document((TextSegment((bos, *words)),))
    before, image, after = prompt_document(pipeline, "a red circle", picture).segments
    assert (before, after) == (TextSegment((bos,)), TextSegment(words))
    assert torch.equal(image.latents, picture)
