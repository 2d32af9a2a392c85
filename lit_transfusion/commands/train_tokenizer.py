"""`train_tokenizer`: train a tokenizer.model on captions and texts, and measure it on held-out ones."""

import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lit_transfusion.data.permutation import shuffled
from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.training_text import passages_of
from lit_transfusion.data.types import EditExample, Example, Skipped, TextExample
from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.progress import OnProgress, Progress
from lit_transfusion.whole_file import whole_file

SMALLEST = 260  # 256 bytes, three control tokens and one letter
HELD_OUT_EXAMPLES = 500  # the most held-out examples of each source
HELD_OUT_CHARACTERS = 1_000_000


class Measured(NamedTuple):
    """Statistics of a tokenizer on some texts."""

    bytes_per_token: float
    tokens_per_word: float  # words are separated by spaces
    single_bytes: float  # share of the tokens that are single bytes, of letters without a piece


def train_tokenizer(
    source: Source,
    vocab_size: int,
    output: str,
    characters: int = 50_000_000,
    character_coverage: float | None = None,
    overwrite: bool = False,
) -> None:
    """Train a SentencePiece tokenizer, like that of Llama 2, on the captions and texts of a source.

    It uses byte-pair encoding with byte fallback, so that it can encode any text. Each digit is a piece, and the spaces
    and line breaks of texts are kept. It is trained on the training split, and then measured on the held-out split.

    --config also accepts the config of a run: its data.source and data.vocab_size are used. --data.source and
    --data.vocab_size work on the command line, too, as for `fit`.

    Args:
        source: Where captions and texts come from, as in a run's `data.source`.
        vocab_size: The most pieces, including the 256 bytes and 3 control tokens (Llama 2: 32,000). There are fewer if
            the texts do not have enough.
        output: File for the tokenizer.
        characters: About the most characters to train on from each source of a mix; larger sources are sampled evenly.
            They are all in memory at the same time, at about ten bytes each.
        character_coverage: Share of all characters whose letters have their own pieces, in [0.98, 1]. Rarer letters are
            encoded as bytes. Null: 0.99995 as in Llama 2, or 0.9995 if there are more than 1,000 different letters
            (Chinese, Japanese, Korean); if these do not fit, the most frequent ones, in half of the vocabulary.
        overwrite: Replace a file that contains another tokenizer.
    """
    path = Path(output)
    check(path, vocab_size, characters, character_coverage, overwrite)
    with Progress() as progress:
        row = progress.add("")

        def on_progress(doing: str, done: float, total: float | None) -> None:
            row.update(done, doing, total)

        parts = source.split("train").parts.values()
        passages = [passage for part in parts for passage in passages_for(part, characters, on_progress)]
        size = sum(map(len, passages))
        progress.say(f"training on {len(passages):,} captions and passages of {size:,} characters")
        on_progress("training", 0, None)
        tokenizer = Tokenizer.train(passages, vocab_size, source.has_texts, character_coverage)
        save(tokenizer, path, overwrite)
        measured = {
            name or type(part).__name__: measure(tokenizer, part.split("val"), on_progress)
            for name, part in source.parts.items()
        }
    report(tokenizer, path, vocab_size, measured)


def check(path: Path, vocab_size: int, characters: int, character_coverage: float | None, overwrite: bool) -> None:
    """Report invalid options now rather than after minutes of training."""
    if vocab_size < SMALLEST:
        raise InputError(
            f"vocab_size {vocab_size} is too small: 256 bytes, 3 control tokens and a letter need at least {SMALLEST}"
        )
    check_at_least("characters", characters)
    if character_coverage is not None and not 0.98 <= character_coverage <= 1:  # the range of SentencePiece
        raise InputError(f"character_coverage {character_coverage} is invalid: it must be between 0.98 and 1")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; use a file in it, such as {path / 'tokenizer.model'}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--output {path} cannot be written: {folder} is not a writable folder; use another path")
    if path.exists() and not overwrite:
        try:
            Tokenizer.from_file(str(path))
        except InputError:
            raise InputError(
                f"--output {path} exists and is not a tokenizer; use another name, or --overwrite to replace it"
            ) from None


def passages_for(source: Source, characters: int, on_progress: OnProgress) -> list[str]:
    """The texts of a source as passages for SentencePiece; an even sample if there are more than about `characters`."""
    if source.images_per_example:  # its captions can be read without its pictures
        texts = source.captions()
        size = sum(map(len, texts))
        if size > characters:
            texts = random.Random(0).sample(texts, max(1, len(texts) * characters // size))
    else:
        texts = read_texts(source, len(source), characters, on_progress)
    return [passage for text in texts for passage in passages_of(text)]


def read_texts(source: Source, most: int, characters: int, on_progress: OnProgress) -> Iterator[str]:
    """The texts of randomly chosen examples: at most `most` examples, until there are `characters` characters."""
    size = 0
    for index in islice(shuffled(len(source), seed=0), most):
        for text in texts_of(source[int(index)]):
            yield text
            size += len(text)
        on_progress("reading", size, characters)
        if size >= characters:
            return


def texts_of(example: Example | EditExample | TextExample | Skipped) -> tuple[str, ...]:
    match example:
        case Example():
            return example.captions
        case EditExample():
            return example.instructions
        case TextExample():
            return (example.text,)
        case Skipped():
            return ()


def save(tokenizer: Tokenizer, path: Path, overwrite: bool) -> None:
    """Write the file; an error if it already contains another tokenizer, without `overwrite`."""
    if path.exists() and not overwrite:
        if path.read_bytes() != tokenizer.model:
            raise InputError(
                f"--output {path} contains another tokenizer; use another name, or --overwrite to replace it"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(tokenizer.model)


def measure(tokenizer: Tokenizer, source: Source, on_progress: OnProgress) -> Measured | None:
    """Measure the tokenizer on a source that it was not trained on; None if the source is empty."""
    size = words = 0
    tokens: list[int] = []
    for text in read_texts(source, HELD_OUT_EXAMPLES, HELD_OUT_CHARACTERS, on_progress):
        size += len(text.encode())
        words += len(text.split())
        tokens += tokenizer.encode(text)
    if not words:
        return None
    single_bytes = sum(map(tokenizer.is_byte, tokens))
    return Measured(size / len(tokens), len(tokens) / words, single_bytes / len(tokens))


def report(tokenizer: Tokenizer, path: Path, vocab_size: int, measured: dict[str, Measured | None]) -> None:
    fewer = f" (not {vocab_size}: the texts have no more)" if tokenizer.boi < vocab_size else ""
    print(f"{path}: {tokenizer.boi} pieces{fewer}")
    table = Table("measured on held-out texts", "bytes per token", "tokens per word", "single bytes")
    for name, one in measured.items():
        numbers = ["nothing is held out", "", ""]
        if one is not None:
            numbers = [f"{one.bytes_per_token:.2f}", f"{one.tokens_per_word:.2f}", f"{100 * one.single_bytes:.2f} %"]
        table.add_row(name, *numbers)
    Console().print(table)
    print(f"train with --data.tokenizer_model {path}")
