"""CIDEr and BLEU against a slow reference, and against pycocoevalcap from end to end."""

import math
import shutil
import sys
from collections import Counter

import pytest

from lit_transfusion.data.types import Example
from lit_transfusion.evaluation.captions import BLEU, CIDEr, bleu, cider, words
from lit_transfusion.evaluation.metric import Unavailable

REFERENCES = [
    ("A man is riding a horse on the beach.", "A person rides a brown horse along the shore"),
    ("Two dogs play with a ball, in the grass.", "A pair of dogs playing on a lawn!"),
    ("A red bus is parked on the side of the street.",),
    ("The man's well-made table: with a vase of flowers",),
]
WRITTEN = ["A man rides a horse on the beach", "two dogs in the grass", "A red bus on the street.", "a blue car"]


def reference_cider(written, references):
    """CIDEr-D by its definition (Vedantam et al., 2015, section 8), with σ = 6 and tf as counts."""

    def grams(text, n):
        split = text.lower().replace(".", "").replace(",", "").replace("!", "").replace(":", "").split()
        return Counter(tuple(split[i : i + n]) for i in range(len(split) - n + 1))

    total = 0.0
    for hypothesis, captions in zip(written, references, strict=True):
        for n in range(1, 5):
            with_gram = Counter(gram for texts in references for gram in {g for t in texts for g in grams(t, n)})

            def weighted(text, n=n, with_gram=with_gram):
                return {g: c * math.log(len(references) / max(1, with_gram[g])) for g, c in grams(text, n).items()}

            for caption in captions:
                x, y = weighted(hypothesis), weighted(caption)
                norms = math.hypot(*x.values()) * math.hypot(*y.values())
                cosine = sum(min(x[g], y[g]) * y[g] for g in x if g in y) / norms if norms else 0.0
                gap = len(hypothesis.split()) - len(caption.split())
                total += 10 * cosine * math.exp(-(gap**2) / (2 * 6**2)) / (4 * len(captions) * len(references))
    return total


def test_cider_equals_the_reference():
    pytest.importorskip("pycocoevalcap")
    references = [*REFERENCES[:3], ("a table with a vase of flowers",)]
    expected = reference_cider(WRITTEN, references)
    assert cider(WRITTEN, references) == pytest.approx(expected, rel=1e-9) and 0.5 < expected < 9


def test_cider_is_ten_for_the_only_captions_and_nothing_for_other_words():
    pytest.importorskip("pycocoevalcap")
    texts = ["one two three four", "five six seven eight nine"]
    assert cider(texts, [(text,) for text in texts]) == pytest.approx(10)
    assert cider(texts, [(text,) for text in texts[::-1]]) == 0


def test_bleu_equals_a_manual_count():
    pytest.importorskip("pycocoevalcap")
    written, references = ["a b c d e f"], [("a b c d x e f", "z")]
    # Of the written n-grams, 6 of 6 words, 4 of 5 pairs, 2 of 4 triples and 1 of 3 fours match. 6 words are closer
    # to 7 than to 1, so they are too short by one.
    expected = (6 / 6 * 4 / 5 * 2 / 4 * 1 / 3) ** (1 / 4) * math.exp(1 - 7 / 6)
    assert bleu(written, references) == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(shutil.which("java") is None, reason="PTBTokenizer is a Java program")
def test_same_as_pycocoevalcap_with_its_own_tokenizer():
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenize = PTBTokenizer().tokenize
    right = tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(REFERENCES)})
    answers = tokenize({i: [{"caption": text}] for i, text in enumerate(WRITTEN)})
    assert right == {i: [" ".join(words(text)) for text in texts] for i, texts in enumerate(REFERENCES)}
    assert cider(WRITTEN, REFERENCES) == pytest.approx(Cider().compute_score(right, answers)[0], rel=1e-12)
    assert bleu(WRITTEN, REFERENCES) == pytest.approx(Bleu(4).compute_score(right, answers, verbose=0)[0][3], rel=1e-12)


def test_words_of_a_caption():
    text = "A man's well-dressed dog, (aged 3) – “Über” «été»: can't_it...  sit?\n"
    assert words(text) == ["a", "man", "'s", "well-dressed", "dog", "aged", "3", "über", "été", "can", "'t_it", "sit"]


def test_metrics_compare_written_captions_with_all_captions_of_the_picture(make_subject, capsys):
    pytest.importorskip("pycocoevalcap")
    examples = [Example(None, captions) for captions in REFERENCES]
    subject = make_subject(examples=examples, written=WRITTEN)
    assert CIDEr()(subject) == {"cider": cider(WRITTEN, REFERENCES)}
    assert BLEU()(subject) == {"bleu": bleu(WRITTEN, REFERENCES)}
    assert capsys.readouterr().out == ""


def test_measures_what_the_model_writes(make_subject):
    pytest.importorskip("pycocoevalcap")
    subject = make_subject()
    assert 0 <= CIDEr()(subject)["cider"] <= 10 and 0 <= BLEU()(subject)["bleu"] <= 1
    nothing = make_subject(written=["", " ", "?", "..."])
    assert CIDEr()(nothing) == {"cider": 0} and BLEU()(nothing)["bleu"] < 1e-3


@pytest.mark.parametrize("metric", [CIDEr(), BLEU()])
def test_missing_package_is_an_error_before_anything_is_written(metric, make_subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(Unavailable, match=r'pycocoevalcap: pip install -e "\.\[evaluation\]"'):
        metric(make_subject(written=None))
