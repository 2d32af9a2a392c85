"""The training recipe: the random choices that make documents from examples (paper, 4.1, 4.3.4 and 4.5)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_transfusion.data.grammar import caption_first, edit, image_first, text_documents, unconditional
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import NO_LIMIT, Document, EditExample, Example, ImageSegment, TextExample
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Moments, Raw


@dataclass(frozen=True)
class Recipe:
    """How a captioned picture or an edit becomes a document. A text becomes one document, or several if it is long.

    Args:
        caption_first: Share of documents with the caption before the image; in the others the image is first (paper,
            4.1: 0.8).
        image_first_max_timestep: Largest timestep of an image before its caption, so that the caption is learned from a
            recognisable picture; null for no limit (paper, Table 8: 500 of 1,000).
        caption_dropout: Share of the caption-first documents without their caption. Guidance needs a net that knows
            images without a caption. No text of such a document is learned.
        instruction_dropout: Share of the edits without their instruction, also for guidance. The input picture stays.
        input_max_timestep: Largest timestep of the input picture of an edit. 0 shows it as the sampler does: the noise
            is less than one grey level. Null for no limit.
        learn_input: Whether the input picture of an edit has a diffusion loss. It learns little at small timesteps.
        learn_instruction: Whether the text of an instruction is learned. By default, input and instruction are a
            prompt, and only the answer is learned, from BOI to EOS: a net that learns to write instructions after a
            picture forgets to write captions there. The paper does not mention this.
        mirror: Share of the pictures that are mirrored (left and right exchanged); of an edit, both pictures or none.
            Captions do not change, so their "left" and "right" become wrong.
        clean_copies: Whether an image with a loss, before a caption or an instruction, has a clean copy. The text sees
            that, and the noised image is only learned (Deng et al., 2025, BAGEL). The patches are then twice in the
            row. In the paper, the text sees the noised image.
    """

    caption_first: float = 0.8
    image_first_max_timestep: int | None = None
    caption_dropout: float = 0.1
    instruction_dropout: float = 0.1
    input_max_timestep: int | None = 0
    learn_input: bool = False
    learn_instruction: bool = False
    mirror: float = 0.0
    clean_copies: bool = False

    def __post_init__(self) -> None:
        for name in ("caption_first", "caption_dropout", "instruction_dropout", "mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.recipe.{name} {getattr(self, name)} is invalid; use a share from 0 to 1")

    @property
    def copies_per_image(self) -> int:
        """The most times that the patches of an image are in a row."""
        return 2 if self.clean_copies else 1

    def documents(
        self,
        example: Example | EditExample | TextExample,
        tokenizer: Tokenizer,
        max_text_tokens: int,
        generator: torch.Generator,
    ) -> list[Document]:
        """Make the documents of an example: one for a picture or an edit, one or more for a text.

        Captions and instructions are cut to `max_text_tokens`, and the document is marked as cut. A text is divided
        into pieces of that length. The token after a cut is not learned, because the text does not end there.
        """
        if isinstance(example, TextExample):
            return text_documents(tokenizer.encode(example.text), tokenizer, max_text_tokens, example.complete)
        return [self.document(example, tokenizer, max_text_tokens, generator)]

    def document(
        self, example: Example | EditExample, tokenizer: Tokenizer, max_text_tokens: int, generator: torch.Generator
    ) -> Document:
        """Make the document of an example, with random choices from `generator` and text cut to `max_text_tokens`."""
        # Drawn first, and only if used, so that runs without mirroring draw the same numbers as versions without it.
        if self.mirror > 0 and float(torch.rand((), generator=generator)) < self.mirror:
            example = example.mirrored()
        match example:
            case Example():
                return self._captioned(example, tokenizer, max_text_tokens, generator)
            case EditExample():
                return self._edited(example, tokenizer, max_text_tokens, generator)
            case _:
                raise TypeError(f"cannot make a document from a {type(example).__name__}")

    def _captioned(
        self, example: Example, tokenizer: Tokenizer, max_text_tokens: int, generator: torch.Generator
    ) -> Document:
        """Make a document of the image and one of its captions, in either order."""
        order, dropout = torch.rand(2, generator=generator).tolist()
        choice = int(torch.randint(len(example.captions), (), generator=generator))
        caption = tokenizer.encode(example.captions[choice])
        cut, caption = len(caption) > max_text_tokens, caption[:max_text_tokens]
        if order < self.caption_first:
            if dropout < self.caption_dropout:
                return unconditional(value_of(example.image), tokenizer)
            return caption_first(caption, value_of(example.image), tokenizer, cut)
        cap = noise_cap(self.image_first_max_timestep)
        return image_first(caption, value_of(example.image), tokenizer, cap, cut, self.clean_copies)

    def _edited(
        self, example: EditExample, tokenizer: Tokenizer, max_text_tokens: int, generator: torch.Generator
    ) -> Document:
        """Make the document BOS [input] instruction [output] EOS, with one of the instructions or none."""
        dropout = float(torch.rand((), generator=generator))
        choice = int(torch.randint(len(example.instructions), (), generator=generator))
        given = ImageSegment(
            value_of(example.input_image),
            noise_cap(self.input_max_timestep),
            learn=self.learn_input,
            clean_copy=self.learn_input and self.clean_copies,
        )
        if dropout < self.instruction_dropout:
            return unconditional(value_of(example.output_image), tokenizer, [given])
        instruction = tokenizer.encode(example.instructions[choice])
        cut, instruction = len(instruction) > max_text_tokens, instruction[:max_text_tokens]
        return edit(given, instruction, value_of(example.output_image), tokenizer, self.learn_instruction, cut)


def value_of(image: Tensor | Moments) -> Raw | Moments:
    """The image of an example for a document: a tensor contains pixels, which the codec must encode."""
    return Raw(image) if isinstance(image, Tensor) else image


def noise_cap(max_timestep: int | None) -> int:
    return NO_LIMIT if max_timestep is None else max_timestep
