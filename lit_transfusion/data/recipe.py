"""Example → documents: the whole training recipe, and nowhere else (paper, 4.1, 4.3.4 and 4.5)."""

from dataclasses import dataclass

import torch

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import (
    NO_LIMIT,
    Document,
    EditExample,
    Example,
    ImageSegment,
    TextExample,
    TextSegment,
)
from lit_transfusion.errors import InputError

# A text without tokens before an image decides whether its BOI is learned, whatever text came before.
LEARNED, NOT_LEARNED = TextSegment(()), TextSegment((), learn=False)


@dataclass(frozen=True)
class Recipe:
    """How a picture and its captions, or an edit, become a document. A text is one as it is, or several.

    Args:
        caption_first: Share of documents with the caption before the image; in the others the image comes first
            (paper, 4.1: 0.8).
        image_first_max_timestep: Largest timestep for an image that comes before its caption, so that the caption is
            learned from a picture that can be recognised; null for none (paper, Table 8: 500 of 1,000).
        caption_dropout: Share of the caption-first documents whose caption is left out, so that the net also knows
            images without a caption, which guidance needs. Nothing of the text of such a document is learned.
        instruction_dropout: Share of the edits whose instruction is left out while the input picture stays, for the
            same end.
        input_max_timestep: Largest timestep for the input picture of an edit; 0 shows it as the sampler does, clean
            but for less than a grey level of noise; null for none.
        learn_input: Whether the input picture of an edit has a diffusion loss. It learns little at small timesteps.
        learn_instruction: Whether the text of an instruction is learned. By default an edit is a prompt (input and
            instruction) and what is learned is its answer, from BOI to EOS: to learn to write instructions after a
            picture would unlearn to write captions there. The paper does not say.
        mirror: Share of the pictures that are shown mirrored, left and right exchanged; both pictures of an edit are,
            or neither. Captions stay as they are: what they say of left and right becomes wrong.
    """

    caption_first: float = 0.8
    image_first_max_timestep: int | None = None
    caption_dropout: float = 0.1
    instruction_dropout: float = 0.1
    input_max_timestep: int | None = 0
    learn_input: bool = False
    learn_instruction: bool = False
    mirror: float = 0.0

    def __post_init__(self) -> None:
        for name in ("caption_first", "caption_dropout", "instruction_dropout", "mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.recipe.{name} {getattr(self, name)} is not a share between 0 and 1")

    def documents(
        self,
        example: Example | EditExample | TextExample,
        tokenizer: Tokenizer,
        max_text_tokens: int,
        generator: torch.Generator,
    ) -> list[Document]:
        """What is learned from an example: of a picture or an edit one document, of a long text several.

        Captions and instructions are cut to `max_text_tokens`, with a mark; a text is cut into pieces of that length.
        What would follow a cut is not learned there: the text does not end where the room ends.
        """
        if isinstance(example, TextExample):
            return text_documents(tokenizer.encode(example.text), tokenizer, max_text_tokens, example.complete)
        return [self.document(example, tokenizer, max_text_tokens, generator)]

    def document(
        self, example: Example | EditExample, tokenizer: Tokenizer, max_text_tokens: int, generator: torch.Generator
    ) -> Document:
        """What is learned from an example, its text cut to `max_text_tokens`, with choices drawn at random."""
        # Asked first, so that without mirroring all else is drawn as it was before there was any.
        if self.mirror > 0 and float(torch.rand((), generator=generator)) < self.mirror:
            example = example.mirrored()
        match example:
            case Example():
                return self._captioned(example, tokenizer, max_text_tokens, generator)
            case EditExample():
                return self._edited(example, tokenizer, max_text_tokens, generator)
            case _:
                raise TypeError(f"no document is made of a {type(example).__name__}")

    def _captioned(
        self, example: Example, tokenizer: Tokenizer, max_text_tokens: int, generator: torch.Generator
    ) -> Document:
        """One of the captions and the image, in either order."""
        order, dropout = torch.rand(2, generator=generator).tolist()
        choice = int(torch.randint(len(example.captions), (), generator=generator))
        caption = tokenizer.encode(example.captions[choice])
        cut, caption = len(caption) > max_text_tokens, caption[:max_text_tokens]
        if order < self.caption_first:
            if dropout < self.caption_dropout:
                return unconditional(example.image, tokenizer)
            return caption_first(caption, example.image, tokenizer, cut)
        cap = noise_cap(self.image_first_max_timestep)
        return image_first(caption, example.image, tokenizer, cap, cut)

    def _edited(
        self, example: EditExample, tokenizer: Tokenizer, max_text_tokens: int, generator: torch.Generator
    ) -> Document:
        """BOS [input] instruction [output] EOS, one of the instructions or none."""
        dropout = float(torch.rand((), generator=generator))
        choice = int(torch.randint(len(example.instructions), (), generator=generator))
        given = ImageSegment(example.input_image, noise_cap(self.input_max_timestep), learn=self.learn_input)
        if dropout < self.instruction_dropout:
            prompt, end = null_edit_prompt(given, tokenizer), TextSegment((tokenizer.eos,), learn=False)
        else:
            instruction = tokenizer.encode(example.instructions[choice])
            cut = len(instruction) > max_text_tokens
            prompt = edit_prompt(given, instruction[:max_text_tokens], tokenizer, self.learn_instruction, cut)
            end = TextSegment((tokenizer.eos,))
        return Document((*prompt.segments, ImageSegment(example.output_image), end), prompt.cut)


def noise_cap(max_timestep: int | None) -> int:
    return NO_LIMIT if max_timestep is None else max_timestep


def text_documents(
    text: tuple[int, ...], tokenizer: Tokenizer, max_text_tokens: int, complete: bool = True
) -> list[Document]:
    """BOS text EOS (paper, 4.1), or pieces of it: BOS piece, …, BOS piece EOS.

    BOS stands before each piece so that every token of the text is predicted once from something, and none twice. EOS
    stands at the end of the text alone: where a piece ends, the text does not.
    """
    starts = range(0, max(len(text), 1), max_text_tokens)
    pieces = [(tokenizer.bos, *text[start : start + max_text_tokens]) for start in starts]
    if complete:
        pieces[-1] += (tokenizer.eos,)
    return [Document((TextSegment(piece),)) for piece in pieces]


def caption_first(caption: tuple[int, ...], image: torch.Tensor, tokenizer: Tokenizer, cut: bool = False) -> Document:
    """BOS caption [image] EOS; the BOI after a caption that was cut is not learned."""
    text = [TextSegment((tokenizer.bos, *caption)), *[NOT_LEARNED] * cut]
    return Document((*text, ImageSegment(image), TextSegment((tokenizer.eos,))), cut)


def image_first(
    caption: tuple[int, ...],
    image: torch.Tensor,
    tokenizer: Tokenizer,
    max_timestep: int = NO_LIMIT,
    cut: bool = False,
) -> Document:
    """BOS [image] caption EOS; no EOS after a caption that was cut."""
    text = TextSegment(caption if cut else (*caption, tokenizer.eos))
    return Document((TextSegment((tokenizer.bos,)), ImageSegment(image, max_timestep), text), cut)


def unconditional(image: torch.Tensor, tokenizer: Tokenizer) -> Document:
    """BOS [image] EOS, of which only the image is learned: what guidance steers away from."""
    segments = null_prompt(tokenizer), ImageSegment(image), TextSegment((tokenizer.eos,), learn=False)
    return Document(segments)


def null_prompt(tokenizer: Tokenizer) -> TextSegment:
    """What stands before an image without a caption; the sampler's prompts (`generation/prompts.py`) are the same."""
    return TextSegment((tokenizer.bos,), learn=False)


def edit_prompt(
    given: ImageSegment, instruction: tuple[int, ...], tokenizer: Tokenizer, learn: bool = False, cut: bool = False
) -> Document:
    """BOS [input] instruction: what stands before the output of an edit, in training and in sampling alike.

    The BOI of the output is learned even where the instruction is not, so that the net begins the output by itself;
    but not after an instruction that was cut.
    """
    boi = NOT_LEARNED if cut else LEARNED
    return Document((null_prompt(tokenizer), given, TextSegment(instruction, learn), boi), cut)


def null_edit_prompt(given: ImageSegment, tokenizer: Tokenizer) -> Document:
    """BOS [input]: what stands before the output of an edit whose instruction is left out, in training and in sampling.

    It is the null prompt of guidance for edits: what guidance strengthens is the instruction, never the input, which
    both sides see. The BOI of the output follows the EOI of the input at once.
    """
    return Document((null_prompt(tokenizer), given))
