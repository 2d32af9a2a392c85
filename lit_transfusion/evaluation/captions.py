"""How near the captions that a model writes are to those that people wrote: CIDEr and BLEU by COCO's own code.

Words are split by `words`, so that no Java is needed. COCO's PTBTokenizer splits ordinary captions into the same words,
but others where there are contractions, abbreviations or numbers (don't, U.S., 3.5); figures that are to stand beside
published ones should come from it.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable

WORD = re.compile(r"\w+(?:-\w+)*|'\w+")  # the 's of a man's is a word, as it is to PTBTokenizer


class CIDEr(Metric):
    """How near a caption written for each picture is to all of its captions (Vedantam et al., 2015).

    It is what the paper reports (4.1 and Table 3), the CIDEr-D of COCO: the cosine between the n-grams of both, n = 1
    to 4, each weighted by how few of the pictures have it in their captions, times 10. So it is 0 for nothing in common
    and 10 where each picture has one caption, of four words at least, and gets it word for word; papers print 100 times
    this number. The weights come from the captions of the very set that is judged: other pictures, or another number of
    them, give other figures.
    """

    columns: ClassVar[dict[str, str]] = {"cider": "more"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        check_package()
        return {"cider": cider(subject.written, [example.captions for example in subject.examples])}


class BLEU(Metric):
    """How many of the n-grams that are written for a picture are in one of its captions (Papineni et al., 2002).

    It is the BLEU-4 of COCO, in [0, 1]: the geometric mean over n = 1 to 4 of the share of n-grams found, of all
    pictures together, lowered if what is written is shorter than the captions.
    """

    columns: ClassVar[dict[str, str]] = {"bleu": "more"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        check_package()
        return {"bleu": bleu(subject.written, [example.captions for example in subject.examples])}


def cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Of N > 1 captions, each beside at least one that it should be like. In [0, 10]."""
    from pycocoevalcap.cider.cider import Cider

    score, _ = Cider().compute_score(*as_coco(written, references))
    return float(score)


def bleu(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Of N > 0 captions, each beside at least one that it should be like. In [0, 1]."""
    from pycocoevalcap.bleu.bleu import Bleu

    scores, _ = Bleu(4).compute_score(*as_coco(written, references), verbose=0)
    return float(scores[3])


def as_coco(
    written: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and what is written, by number, the words of each separated by spaces."""
    right = {i: [" ".join(words(text)) for text in texts] for i, texts in enumerate(references)}
    return right, {i: [" ".join(words(text))] for i, text in enumerate(written)}


def words(text: str) -> list[str]:
    """Those of a caption, in small letters and without punctuation."""
    return WORD.findall(text.lower())


def check_package() -> None:
    """`Unavailable` if COCO's code is not there; asked before anything is written, since that takes long."""
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError as error:
        raise Unavailable('CIDEr and BLEU need pycocoevalcap: pip install -e ".[evaluation]"') from error
