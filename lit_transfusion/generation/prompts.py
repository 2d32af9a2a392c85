"""Prompts as documents: what people give, in the order in which training shows it."""

import torch
from torch import Tensor

from lit_transfusion.data.document import Document, ImageSegment, TextSegment
from lit_transfusion.generation.pipeline import Pipeline


def prompt_document(pipeline: Pipeline, prompt: str | None = None, picture: Tensor | None = None) -> Document:
    """BOS [picture] prompt, of which either may be missing; a picture is (3, S, S) in [-1, 1]."""
    tokenizer = pipeline.tokenizer
    words = tokenizer.encode(prompt) if prompt else ()
    if picture is None:
        return Document((TextSegment((tokenizer.bos, *words)),))
    pixels = picture[None].to(pipeline.net.head.weight.device)
    latents = pipeline.codec.encode(pixels, torch.Generator().manual_seed(0))[0]  # alike in any batch
    return Document((TextSegment((tokenizer.bos,)), ImageSegment(latents), TextSegment(words)))
