"""Prompts as documents: what people give, in the order in which training shows it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.data.document import Document, ImageSegment, TextSegment
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.generation.pipeline import Pipeline


def prompt_document(pipeline: Pipeline, prompt: str | None = None, picture: Tensor | None = None) -> Document:
    """BOS [picture] prompt, of which either may be missing; a picture is (3, S, S) in [-1, 1]."""
    return interleaved(pipeline, [part for part in (picture, prompt) if part is not None])


def interleaved(pipeline: Pipeline, parts: Sequence[str | Tensor]) -> Document:
    """BOS, then texts and pictures (3, S, S) in [-1, 1] in the order given."""
    segments: list[TextSegment | ImageSegment] = [TextSegment((pipeline.tokenizer.bos,))]
    for part in parts:
        if isinstance(part, str):
            before = segments.pop().token_ids if isinstance(segments[-1], TextSegment) else ()
            segments.append(TextSegment((*before, *pipeline.tokenizer.encode(part))))
        else:
            pixels = part[None].to(pipeline.net.head.weight.device)
            # Each by itself, so that what a codec draws at random is the same in any batch.
            segments.append(ImageSegment(pipeline.codec.encode(pixels, torch.Generator().manual_seed(0))[0]))
    return Document(tuple(segments))


def null_document(tokenizer: Tokenizer, images: Sequence[ImageSegment], negative_prompt: str | None) -> Document:
    """BOS [images] negative prompt: what guidance steers away from when it draws the next image of a document.

    It has all images of the document so far, given or drawn, and none of its text. So guidance strengthens the text and
    never the images, as in training on edits (`data/recipe.py`, `null_edit_prompt`).
    """
    negative = TextSegment(tokenizer.encode(negative_prompt or ""))
    return Document((TextSegment((tokenizer.bos,)), *images, negative))
