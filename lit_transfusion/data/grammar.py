"""The grammar of documents: every form of document that training, sampling and evaluation use is made here.

| form | function | learned |
|---|---|---|
| `BOS text EOS` | `text_documents` | the text and EOS |
| `BOS caption [image] EOS` | `caption_first` | everything |
| `BOS [image] caption EOS` | `image_first` | everything |
| `BOS [image] EOS` | `unconditional` | the image |
| `BOS [input] instruction [output] EOS` | `edit` | the output with its BOI, and EOS |
| `BOS [input] [output] EOS` | `unconditional` | the output |
| `BOS texts and images in any order` | `prompt` | (for sampling) |
| `BOS [images] negative prompt` | `null_prompt` | nothing; the prompt of guidance |
| `BOS context continuation` | `continuation` | the continuation |

`[image]` is BOI, patches and EOI. `data/packing.py` puts these markers and derives the labels: BOS, EOI and patches are
never text targets. After a text that was cut, neither BOI nor EOS is learned, because the text does not end there.
"""

from collections.abc import Sequence

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import NO_LIMIT, Document, ImageSegment, ImageValue, TextSegment

Tokens = tuple[int, ...]

# An empty text segment before an image decides whether its BOI is learned, independent of the text before it.
LEARNED, NOT_LEARNED = TextSegment(()), TextSegment((), learn=False)


def text_documents(text: Tokens, tokenizer: Tokenizer, max_text_tokens: int, complete: bool = True) -> list[Document]:
    """Make BOS text EOS (paper, 4.1), or for a long text its pieces: BOS piece, …, BOS piece EOS.

    Each piece starts with BOS, so that every token of the text is predicted exactly once. EOS is only at the end of the
    text, and only if the text is `complete`.
    """
    starts = range(0, max(len(text), 1), max_text_tokens)
    pieces = [(tokenizer.bos, *text[start : start + max_text_tokens]) for start in starts]
    if complete:
        pieces[-1] += (tokenizer.eos,)
    return [Document((TextSegment(piece),)) for piece in pieces]


def caption_first(caption: Tokens, image: ImageValue, tokenizer: Tokenizer, cut: bool = False) -> Document:
    """Make `BOS caption [image] EOS`. The BOI after a caption that was cut is not learned."""
    text = [TextSegment((tokenizer.bos, *caption)), *[NOT_LEARNED] * cut]
    return Document((*text, ImageSegment(image), TextSegment((tokenizer.eos,))), cut)


def image_first(
    caption: Tokens,
    image: ImageValue,
    tokenizer: Tokenizer,
    max_timestep: int = NO_LIMIT,
    cut: bool = False,
    clean_copy: bool = False,
) -> Document:
    """Make `BOS [image] caption EOS`. There is no EOS after a caption that was cut.

    With a clean copy, the caption sees the image without noise.
    """
    text = TextSegment(caption if cut else (*caption, tokenizer.eos))
    return Document(
        (TextSegment((tokenizer.bos,)), ImageSegment(image, max_timestep, clean_copy=clean_copy), text), cut
    )


def unconditional(image: ImageValue, tokenizer: Tokenizer, given: Sequence[ImageSegment] = ()) -> Document:
    """Make `BOS [given images] [image] EOS`, for guidance. Of the text nothing is learned."""
    end = TextSegment((tokenizer.eos,), learn=False)
    return extended(null_prompt(tokenizer, given), ImageSegment(image), end)


def edit(
    given: ImageSegment,
    instruction: Tokens,
    output: ImageValue,
    tokenizer: Tokenizer,
    learn_instruction: bool = False,
    cut: bool = False,
) -> Document:
    """Make `BOS [input] instruction [output] EOS`.

    The BOI of the output is learned even if the instruction is not, so that the net starts the output itself. It is not
    learned after an instruction that was cut.
    """
    text = TextSegment(instruction, learn_instruction), NOT_LEARNED if cut else LEARNED
    start = prompt([given], tokenizer, learn=False)
    return extended(start, *text, ImageSegment(output), TextSegment((tokenizer.eos,)), cut=cut)


def prompt(parts: Sequence[Tokens | ImageSegment], tokenizer: Tokenizer, learn: bool = True) -> Document:
    """Make BOS, then texts (token ids) and images in the given order."""
    segments: list[TextSegment | ImageSegment] = [TextSegment((tokenizer.bos,), learn)]
    for part in parts:
        last = segments[-1]
        if isinstance(part, ImageSegment):
            segments.append(part)
        elif isinstance(last, TextSegment):
            segments[-1] = TextSegment((*last.token_ids, *part), learn)
        elif part:
            segments.append(TextSegment(part, learn))
    return Document(tuple(segments))


def null_prompt(tokenizer: Tokenizer, images: Sequence[ImageSegment] = (), negative: Tokens = ()) -> Document:
    """Make `BOS [images] negative prompt`, the null prompt of guidance for the next image of a document.

    It has all images of the document so far, given or drawn, and none of its text. So guidance strengthens the text but
    not the images, as in training (`unconditional`).
    """
    return prompt([*images, negative], tokenizer, learn=False)


def continuation(context: Sequence[Tokens | ImageSegment], text: Tokens, tokenizer: Tokenizer) -> Document:
    """Make BOS context text, of which only `text` is learned: neither a BOI before it nor an EOS after it."""
    return extended(prompt(context, tokenizer, learn=False), TextSegment(text))


def extended(document: Document, *segments: TextSegment | ImageSegment, cut: bool = False) -> Document:
    """A document with more segments at its end."""
    return Document((*document.segments, *segments), cut)
