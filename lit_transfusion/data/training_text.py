"""Prepares texts for SentencePiece's trainer, which drops some without a warning and fails on many characters."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lit_transfusion.text_reader import is_encodable

PASSAGE = 1000  # characters of a passage; the trainer leaves out what is longer than 4192 bytes
RESERVED = re.compile("[\0▅]+")  # the trainer leaves out a passage that contains one of these (▅ is U+2585)
MANY_CHARACTERS = 1000  # more different ones than this: Chinese, Japanese or Korean
COVERAGE = 0.99995  # Llama 2's
COVERAGE_OF_MANY = 0.9995  # what SentencePiece recommends for them
ANY_DIGIT = "0"  # in place of a character without a piece: a digit is never part of a longer piece

log = logging.getLogger(__name__)


class TrainingText(NamedTuple):
    """What the trainer gets."""

    passages: list[str]
    character_coverage: float


def passages_of(text: str) -> Iterator[str]:
    """Passages of at most PASSAGE characters that are not empty, divided between two words where there is one."""
    for part in RESERVED.split(text):
        while len(part) > PASSAGE:
            end = part.rfind(" ", 1, PASSAGE) + 1 or PASSAGE
            yield part[:end]
            part = part[end:]
        if part:
            yield part


def training_text(texts: Iterable[str], room: int, verbatim: bool, character_coverage: float | None) -> TrainingText:
    """Passages that the trainer takes, all of them.

    Args:
        texts: Captions or texts of any length. What is not Unicode is skipped, with a warning.
        room: Pieces of the vocabulary beside bytes and controls.
        verbatim: Whether each form of a letter is kept.
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
            "the tokenizer is trained without %d texts that are not Unicode: half of a surrogate pair (first: %a)",
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
    if number_covering(ranked, counts, coverage) + (" " not in counts) <= room:  # a space has a piece in any case
        return TrainingText(passages, coverage)
    kept = set(ranked[: max(room // 2, 1)])
    replaced = dict.fromkeys(map(ord, counts.keys() - kept), ANY_DIGIT)
    return TrainingText([passage.translate(replaced) for passage in passages], 1.0)


def number_covering(ranked: list[str], counts: Counter[str], coverage: float) -> int:
    """How many of the most frequent characters make up such a share of all."""
    total, covered = counts.total(), 0
    for number, character in enumerate(ranked):
        if covered >= coverage * total:
            return number
        covered += counts[character]
    return len(ranked)
