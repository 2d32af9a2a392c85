"""`train_tokenizer`: from captions and texts to a tokenizer.model, and what it makes of held-out ones."""

import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lit_transfusion.data.permutation import shuffled
from lit_transfusion.data.shards.files import whole_file
from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.training_text import passages_of
from lit_transfusion.data.types import EditExample, Example, Skipped, TextExample
from lit_transfusion.errors import InputError
from lit_transfusion.progress import OnProgress, Progress

SMALLEST = 260  # the bytes, three controls, and a letter
HELD_OUT_EXAMPLES = 500  # of each source, that it is tried on at most
HELD_OUT_CHARACTERS = 1_000_000


class Found(NamedTuple):
    """What a tokenizer makes of some texts."""

    bytes_per_token: float
    tokens_per_word: float  # words are what stands between spaces
    single_bytes: float  # share of the tokens that are bytes, of letters that have no piece


def train_tokenizer(
    source: Source,
    vocab_size: int,
    output: str,
    characters: int = 50_000_000,
    character_coverage: float | None = None,
    overwrite: bool = False,
) -> None:
    """Train a SentencePiece tokenizer, as Llama 2's, on the captions and texts of a source.

    It is byte-pair encoding with byte fallback, so that any text can be written. Each digit is a piece, and of texts
    each space and line is kept. Training sees the training split only; then it is tried on what is held out.

    --config takes the file of a run, too: its data.source and data.vocab_size are then those of this command. So are
    --data.source and --data.vocab_size on the command line, as `fit` has them.

    Args:
        source: Where captions and texts come from, as in a run's `data.source`.
        vocab_size: Most pieces, the 256 bytes and 3 controls included (Llama 2: 32,000). There are fewer where the
            texts do not hold as many.
        output: File for the tokenizer.
        characters: Of each source in a mix, about so many are trained on at most: a fair sample of larger ones. All of
            them are in memory at once, some ten bytes for each.
        character_coverage: Share of all characters whose letters have pieces of their own, in [0.98, 1]. Rarer letters
            are written as bytes. Null: 0.99995 as in Llama 2, or 0.9995 where there are more than 1,000 different ones
            (Chinese, Japanese, Korean); where these do not fit, the most frequent, in half of the room.
        overwrite: Replace a file that holds another tokenizer.
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
        keep(tokenizer, path, overwrite)
        found = {
            name or type(part).__name__: measure(tokenizer, part.split("val"), on_progress)
            for name, part in source.parts.items()
        }
    report(tokenizer, path, vocab_size, found)


def check(path: Path, vocab_size: int, characters: int, character_coverage: float | None, overwrite: bool) -> None:
    """Refuse at once what would else be refused after minutes of training."""
    if vocab_size < SMALLEST:
        raise InputError(f"vocab_size {vocab_size} is less than {SMALLEST}: 256 bytes, 3 controls and a letter")
    if characters < 1:
        raise InputError(f"characters {characters} is less than 1")
    if character_coverage is not None and not 0.98 <= character_coverage <= 1:  # what SentencePiece takes
        raise InputError(f"character_coverage {character_coverage} is not between 0.98 and 1")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; give a file in it, such as {path / 'tokenizer.model'}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--output {path} cannot be written in {folder}")
    if path.exists() and not overwrite:
        try:
            Tokenizer.from_file(str(path))
        except InputError:
            raise InputError(f"--output {path} is there and no tokenizer; give another name, or --overwrite") from None


def passages_for(source: Source, characters: int, on_progress: OnProgress) -> list[str]:
    """What a source says, in passages that SentencePiece takes: all, or a fair sample of about so many characters."""
    if source.images_per_example:  # its pictures need not be read
        texts = source.captions()
        size = sum(map(len, texts))
        if size > characters:
            texts = random.Random(0).sample(texts, max(1, len(texts) * characters // size))
    else:
        texts = read_texts(source, len(source), characters, on_progress)
    return [passage for text in texts for passage in passages_of(text)]


def read_texts(source: Source, most: int, characters: int, on_progress: OnProgress) -> Iterator[str]:
    """What the examples of a source say, taken at random: of so many at most, until there are so many characters."""
    size = 0
    for index in islice(shuffled(len(source), seed=0), most):
        for text in said_in(source[int(index)]):
            yield text
            size += len(text)
        on_progress("reading", size, characters)
        if size >= characters:
            return


def said_in(example: Example | EditExample | TextExample | Skipped) -> tuple[str, ...]:
    match example:
        case Example():
            return example.captions
        case EditExample():
            return example.instructions
        case TextExample():
            return (example.text,)
        case Skipped():
            return ()


def keep(tokenizer: Tokenizer, path: Path, overwrite: bool) -> None:
    """Write the file, unless one is there that holds another tokenizer."""
    if path.exists() and not overwrite:
        if path.read_bytes() != tokenizer.model:
            raise InputError(
                f"--output {path} holds another tokenizer than this one; give another name, or --overwrite"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(tokenizer.model)


def measure(tokenizer: Tokenizer, source: Source, on_progress: OnProgress) -> Found | None:
    """What the tokenizer makes of a source that it was not trained on; None of an empty one."""
    size = words = 0
    tokens: list[int] = []
    for text in read_texts(source, HELD_OUT_EXAMPLES, HELD_OUT_CHARACTERS, on_progress):
        size += len(text.encode())
        words += len(text.split())
        tokens += tokenizer.encode(text)
    if not words:
        return None
    single_bytes = sum(map(tokenizer.is_byte, tokens))
    return Found(size / len(tokens), len(tokens) / words, single_bytes / len(tokens))


def report(tokenizer: Tokenizer, path: Path, vocab_size: int, found: dict[str, Found | None]) -> None:
    fewer = f" (not {vocab_size}: the texts hold no more)" if tokenizer.boi < vocab_size else ""
    print(f"{path}: {tokenizer.boi} pieces{fewer}")
    table = Table("tried on what is held out", "bytes per token", "tokens per word", "single bytes")
    for name, one in found.items():
        numbers = ["nothing is held out", "", ""]
        if one is not None:
            numbers = [f"{one.bytes_per_token:.2f}", f"{one.tokens_per_word:.2f}", f"{100 * one.single_bytes:.2f} %"]
        table.add_row(name, *numbers)
    Console().print(table)
    print(f"train with --data.tokenizer_model {path}")
