"""Prepare texts for SentencePiece's trainer, which drops some texts silently and fails on many different characters."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lit_transfusion.text_reader import is_encodable

PASSAGE = 1000  # largest number of characters of a passage; the trainer ignores texts over 4192 bytes
RESERVED = re.compile("[\0▅]+")  # the trainer ignores texts with these characters (▅ is U+2585)
MANY_CHARACTERS = 1000  # a language with more characters: Chinese, Japanese or Korean
COVERAGE = 0.99995  # as in Llama 2
COVERAGE_OF_MANY = 0.9995  # recommended by SentencePiece for these languages
ANY_DIGIT = "0"  # replaces characters without a piece: a digit is never part of a longer piece

log = logging.getLogger(__name__)


class TrainingText(NamedTuple):
    """Input of the trainer."""

    passages: list[str]
    character_coverage: float


def passages_of(text: str) -> Iterator[str]:
    """Divide a text into nonempty passages of at most PASSAGE characters, between two words if possible."""
    for part in RESERVED.split(text):
        while len(part) > PASSAGE:
            end = part.rfind(" ", 1, PASSAGE) + 1 or PASSAGE
            yield part[:end]
            part = part[end:]
        if part:
            yield part


def training_text(texts: Iterable[str], room: int, verbatim: bool, character_coverage: float | None) -> TrainingText:
    """Divide texts into passages, all of which the trainer accepts.

    Args:
        texts: Captions or texts of any length. Texts that are not valid Unicode are skipped with a warning.
        room: Pieces of the vocabulary without bytes and controls.
        verbatim: Whether all forms of a letter are kept.
        character_coverage: As in `Tokenizer.train`; None chooses it.
    """
    passages, skipped = [], []
    for text in texts:
        if is_encodable(text):
            passages += passages_of(text)
        else:
            skipped.append(text)
    if skipped:
        log.warning(
            "the tokenizer ignores %d texts that are not valid Unicode: half of a surrogate pair (first: %a)",
            *(len(skipped), skipped[0][:60]),
        )
    if character_coverage is not None:
        return TrainingText(passages, character_coverage)
    if not verbatim:
        passages = [unicodedata.normalize("NFKC", passage) for passage in passages]
    counts = Counter[str]()
    for passage in passages:
        counts.update(passage)
    coverage = COVERAGE if len(counts) <= MANY_CHARACTERS else COVERAGE_OF_MANY
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    if number_covering(ranked, counts, coverage) + (" " not in counts) <= room:  # a space always has a piece
        return TrainingText(passages, coverage)
    kept = set(ranked[: max(room // 2, 1)])
    replaced = dict.fromkeys(map(ord, counts.keys() - kept), ANY_DIGIT)
    return TrainingText([passage.translate(replaced) for passage in passages], 1.0)


def number_covering(ranked: list[str], counts: Counter[str], coverage: float) -> int:
    """The number of most frequent characters that make up the share `coverage` of all characters."""
    total, covered = counts.total(), 0
    for number, character in enumerate(ranked):
        if covered >= coverage * total:
            return number
        covered += counts[character]
    return len(ranked)
