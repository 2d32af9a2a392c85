"""Prompts of a pipeline: encode their pictures, cut them and check their lengths.

A prompt that a person typed is never cut: if it is too long, that is an error (`check_lengths`). A caption or
instruction from data is cut where training cuts it (`caption_tokens`), since the user cannot change it.
"""

import math
import textwrap
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.data import grammar
from lit_transfusion.data.packing import flatten, room_for_text
from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling


def prompt_document(
    pipeline: Pipeline, prompt: str | None = None, picture: Tensor | None = None, cut: bool = False
) -> Document:
    """Make the document BOS [picture] prompt; picture, (3, height, width) in [-1, 1], and prompt are both optional.

    `cut` is for prompts from data: they are cut as in training, so that one image fits after them.
    """
    num_images = 1 if picture is None else 2
    text = caption_tokens(pipeline, prompt, num_images) if cut and prompt is not None else prompt
    return interleaved(pipeline, [part for part in (picture, text) if part is not None])


def caption_tokens(pipeline: Pipeline, caption: str, num_images: int = 1) -> tuple[int, ...]:
    """The token ids of a caption, cut as in training, so that it fits into a row with its images."""
    tokens = pipeline.tokenizer.encode(caption)
    if pipeline.sequence_length is None:  # unknown
        return tokens
    return tokens[: room_for_text(pipeline.sequence_length, pipeline.patches_per_image, num_images)]


def caption_read(pipeline: Pipeline, caption: str) -> str:
    """The text of a caption after `caption_tokens` cuts it; the unchanged caption if nothing is cut."""
    tokens = caption_tokens(pipeline, caption)
    return caption if tokens == pipeline.tokenizer.encode(caption) else pipeline.tokenizer.decode(tokens)


def shape_to_draw(pipeline: Pipeline, prompt: Document, sampling: Sampling) -> tuple[int, int, int]:
    """The shape (C, H, W) of the latents of the images that are drawn after a prompt (see `Sampling.size`).

    Raises:
        InputError: An image of `sampling.size` does not consist of whole patches.
    """
    if sampling.height_and_width:
        height, width = sampling.height_and_width
        side = pipeline.patches.side
        if height % side or width % side:
            raise InputError(f"size {sampling.size} is invalid: both sides must be multiples of {side} pixels, a patch")
        return pipeline.codec.latent_shape(height, width)
    return pipeline.codec.shape_of_latents(prompt.images[-1].value) if prompt.images else pipeline.latent_shape


def image_length(pipeline: Pipeline, latent_shape: tuple[int, int, int]) -> int:
    """Positions of an image with its BOI and EOI."""
    return pipeline.patches.of_latents(*latent_shape[1:]) + 2


def check_lengths(
    pipeline: Pipeline, prompts: Sequence[Document], sampling: Sampling, at_boi: bool, name: str = "the prompt"
) -> list[float]:
    """Number of positions that may follow each prompt, since the net cannot use positions beyond those of training.

    Args:
        pipeline: Has the length of the training rows.
        prompts: The prompts as documents.
        sampling: Has the size of the images to draw.
        at_boi: Whether an image follows directly.
        name: What the user calls such a prompt.

    Raises:
        InputError: A prompt, or the image after it, does not fit.
    """
    longest = math.inf if pipeline.sequence_length is None else pipeline.sequence_length  # None: unknown
    rooms = []
    for prompt in prompts:
        image = image_length(pipeline, shape_to_draw(pipeline, prompt, sampling))
        length = len(flatten(prompt, pipeline.tokenizer, pipeline.patches).tokens)
        rooms.append(longest - length)
        num_images = len(prompt.images) + at_boi
        if length + at_boi * image > longest:
            tokens = [i for part in prompt.segments if isinstance(part, TextSegment) for i in part.token_ids]
            text = textwrap.shorten(pipeline.tokenizer.decode(tokens[1:]), 60, placeholder=" ...")
            images = {0: "", 1: " beside an image"}.get(num_images, f" beside {num_images} images")
            raise InputError(
                f"{name} {text!r} is too long: it has {len(tokens) - 1} tokens, and the model has room for "
                f"{max(longest - length - at_boi * image + len(tokens) - 1, 0)}{images} in the {longest} positions of "
                "its training rows; use a shorter text"
            )
    return rooms


def interleaved(pipeline: Pipeline, parts: Sequence[str | tuple[int, ...] | Tensor]) -> Document:
    """Make a prompt of texts (or their token ids) and pictures (3, height, width) in [-1, 1] in the given order."""

    def segment(part: str | tuple[int, ...] | Tensor) -> tuple[int, ...] | ImageSegment:
        if isinstance(part, Tensor):
            pixels = part[None].to(pipeline.net.head.weight.device)
            # One at a time, so that the random numbers of a codec do not depend on the batch.
            return ImageSegment(pipeline.codec.encode(pixels, torch.Generator().manual_seed(0))[0])
        return pipeline.tokenizer.encode(part) if isinstance(part, str) else part

    return grammar.prompt(list(map(segment, parts)), pipeline.tokenizer)
