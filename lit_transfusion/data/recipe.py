"""Example → Document: the whole training recipe for a pair, and nowhere else (paper, 4.1 and 4.3.4)."""

from dataclasses import dataclass

import torch

from lit_transfusion.data.document import NO_LIMIT, Document, Example, ImageSegment, TextSegment
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How a picture and its captions become a document.

    Args:
        caption_first: Share of documents with the caption before the image; in the others the image comes first
            (paper, 4.1: 0.8).
        image_first_max_timestep: Largest timestep for an image that comes before its caption, so that the caption is
            learned from a picture that can be recognised; null for none (paper, Table 8: 500 of 1,000).
        caption_dropout: Share of the caption-first documents whose caption is left out, so that the net also knows
            images without a caption, which guidance needs. Nothing of the text of such a document is learned.
    """

    caption_first: float = 0.8
    image_first_max_timestep: int | None = None
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("caption_first", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.recipe.{name} {getattr(self, name)} is not a share between 0 and 1")

    def document(
        self, example: Example, tokenizer: Tokenizer, max_caption_tokens: int, generator: torch.Generator
    ) -> Document:
        """One of the example's captions, cut to `max_caption_tokens`, and its image, in an order drawn at random."""
        order, dropout = torch.rand(2, generator=generator).tolist()
        choice = int(torch.randint(len(example.captions), (), generator=generator))
        caption = tokenizer.encode(example.captions[choice])[:max_caption_tokens]
        if order < self.caption_first:
            if dropout < self.caption_dropout:
                return unconditional(example.image, tokenizer)
            return caption_first(caption, example.image, tokenizer)
        limit = self.image_first_max_timestep
        return image_first(caption, example.image, tokenizer, NO_LIMIT if limit is None else limit)


def caption_first(caption: tuple[int, ...], image: torch.Tensor, tokenizer: Tokenizer) -> Document:
    """BOS caption [image] EOS"""
    return Document((TextSegment((tokenizer.bos, *caption)), ImageSegment(image), TextSegment((tokenizer.eos,))))


def image_first(
    caption: tuple[int, ...], image: torch.Tensor, tokenizer: Tokenizer, max_timestep: int = NO_LIMIT
) -> Document:
    """BOS [image] caption EOS"""
    segments = TextSegment((tokenizer.bos,)), ImageSegment(image, max_timestep), TextSegment((*caption, tokenizer.eos))
    return Document(segments)


def unconditional(image: torch.Tensor, tokenizer: Tokenizer) -> Document:
    """BOS [image] EOS, of which only the image is learned: what guidance steers away from."""
    segments = null_prompt(tokenizer), ImageSegment(image), TextSegment((tokenizer.eos,), learn=False)
    return Document(segments)


def null_prompt(tokenizer: Tokenizer) -> TextSegment:
    """What stands before an image without a caption, in training and in sampling alike."""
    return TextSegment((tokenizer.bos,), learn=False)
