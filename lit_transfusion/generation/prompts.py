"""Prompts as documents: what people give, in the order in which training shows it.

A prompt that a person typed is never cut: one that is too long is an error (`check_lengths`). A caption or instruction
from data is cut where training cuts it (`caption_tokens`), since a person can do nothing about it.
"""

import math
import textwrap
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.data.packing import flatten, room_for_text
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline


def prompt_document(
    pipeline: Pipeline, prompt: str | None = None, picture: Tensor | None = None, cut: bool = False
) -> Document:
    """BOS [picture] prompt, of which either may be missing; a picture is (3, S, S) in [-1, 1].

    `cut` is for prompts from data: they are cut as in training, with room for one image after them.
    """
    num_images = 1 if picture is None else 2
    text = caption_tokens(pipeline, prompt, num_images) if cut and prompt is not None else prompt
    return interleaved(pipeline, [part for part in (picture, text) if part is not None])


def caption_tokens(pipeline: Pipeline, caption: str, num_images: int = 1) -> tuple[int, ...]:
    """The token ids of a caption, cut where training cuts it, so that it fits beside its images."""
    tokens = pipeline.tokenizer.encode(caption)
    if pipeline.sequence_length is None:  # not known
        return tokens
    return tokens[: room_for_text(pipeline.sequence_length, pipeline.patches_per_image, num_images)]


def caption_read(pipeline: Pipeline, caption: str) -> str:
    """What is left of a caption if it was cut; else the caption as it is, letter by letter."""
    tokens = caption_tokens(pipeline, caption)
    return caption if tokens == pipeline.tokenizer.encode(caption) else pipeline.tokenizer.decode(tokens)


def image_length(pipeline: Pipeline) -> int:
    """Positions of an image with its BOI and EOI."""
    return pipeline.patches_per_image + 2


def check_lengths(
    pipeline: Pipeline, prompts: Sequence[Document], at_boi: bool, name: str = "the prompt"
) -> list[float]:
    """How many positions may follow each prompt: those further on than any in training mean nothing to the net.

    Args:
        pipeline: Knows how long the rows of training were.
        prompts: As they are read.
        at_boi: Whether an image follows at once.
        name: What the user calls such a prompt.

    Raises:
        InputError: A prompt has no room, or not for the image after it.
    """
    longest = math.inf if pipeline.sequence_length is None else pipeline.sequence_length  # None: not known
    rooms = []
    for prompt in prompts:
        length = len(flatten(prompt, pipeline.tokenizer, pipeline.patches_per_image).tokens)
        rooms.append(longest - length)
        num_images = len(prompt.images) + at_boi
        if length + at_boi * image_length(pipeline) > longest:
            tokens = [i for part in prompt.segments if isinstance(part, TextSegment) for i in part.token_ids]
            text = textwrap.shorten(pipeline.tokenizer.decode(tokens[1:]), 60, placeholder=" ...")
            images = {0: "", 1: " beside an image"}.get(num_images, f" beside {num_images} images")
            raise InputError(
                f"{name} {text!r} has {len(tokens) - 1} tokens; the model has room for "
                f"{max(longest - 1 - num_images * image_length(pipeline), 0)}{images} in the {longest} positions of a "
                "row that it was trained on: give a shorter one"
            )
    return rooms


def interleaved(pipeline: Pipeline, parts: Sequence[str | tuple[int, ...] | Tensor]) -> Document:
    """BOS, then texts (or their token ids) and pictures (3, S, S) in [-1, 1] in the order given."""
    segments: list[TextSegment | ImageSegment] = [TextSegment((pipeline.tokenizer.bos,))]
    for part in parts:
        if isinstance(part, str):
            part = pipeline.tokenizer.encode(part)
        if isinstance(part, tuple):
            last = segments[-1]
            if isinstance(last, TextSegment):
                segments[-1] = TextSegment((*last.token_ids, *part))
            else:
                segments.append(TextSegment(part))
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
