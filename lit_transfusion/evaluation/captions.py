"""CIDEr and BLEU of the captions that a model writes, computed by COCO's own code.

Words are split by `words`, so that Java is not needed. COCO's PTBTokenizer splits ordinary captions into the same
words, but splits contractions, abbreviations and numbers (don't, U.S., 3.5) differently; use it for numbers that you
compare with published ones.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable

WORD = re.compile(r"\w+(?:-\w+)*|'\w+")  # the 's of a man's is a word, as it is to PTBTokenizer


class CIDEr(Metric):
    """Similarity between the caption written for each picture and all captions of the picture (Vedantam et al., 2015).

    This is the CIDEr-D of COCO, which the paper reports (4.1 and Table 3): the cosine between the n-grams of both, n =
    1 to 4, times 10. N-grams that are in the captions of fewer pictures weigh more. It is 0 if nothing is in common,
    and 10 if each picture has one caption of at least four words and the model writes exactly that; papers print 100
    times this number. The weights come from the captions of the examples themselves, so other pictures, or another
    number of pictures, give other values.
    """

    columns: ClassVar[dict[str, str]] = {"cider": "more"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        check_package()
        return {"cider": cider(subject.written, [example.captions for example in subject.examples])}


class BLEU(Metric):
    """Share of the written n-grams that are in a caption of the picture (Papineni et al., 2002).

    This is the BLEU-4 of COCO, in [0, 1]: the geometric mean, over n = 1 to 4, of the share of n-grams that match, over
    all pictures together. It is lower if the written captions are shorter than the captions of the data.
    """

    columns: ClassVar[dict[str, str]] = {"bleu": "more"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        check_package()
        return {"bleu": bleu(subject.written, [example.captions for example in subject.examples])}


def cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr, in [0, 10], of N > 1 written captions, each with at least one reference."""
    from pycocoevalcap.cider.cider import Cider

    score, _ = Cider().compute_score(*as_coco(written, references))
    return float(score)


def bleu(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4, in [0, 1], of N > 0 written captions, each with at least one reference."""
    from pycocoevalcap.bleu.bleu import Bleu

    scores, _ = Bleu(4).compute_score(*as_coco(written, references), verbose=0)
    return float(scores[3])


def as_coco(
    written: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Convert to the format of COCO's code: references and written captions by index, words separated by spaces."""
    right = {i: [" ".join(words(text)) for text in texts] for i, texts in enumerate(references)}
    return right, {i: [" ".join(words(text))] for i, text in enumerate(written)}


def words(text: str) -> list[str]:
    """The words of a caption, in lower case and without punctuation."""
    return WORD.findall(text.lower())


def check_package() -> None:
    """Raise `Unavailable` if COCO's code is not installed; called before the slow generation of captions."""
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError as error:
        raise Unavailable('CIDEr and BLEU need pycocoevalcap: pip install -e ".[evaluation]"') from error
