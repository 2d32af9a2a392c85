"""Metric of whether a model recognises what it has drawn."""

from typing import ClassVar

from lit_transfusion.evaluation.captions import bleu, check_package, cider
from lit_transfusion.evaluation.metric import Metric, Subject


class RecaptionConsistency(Metric):
    """Similarity between a model's description of its own drawing and the prompt of the drawing, by CIDEr and BLEU.

    The prompt is the only reference caption; see `CIDEr` and `BLEU` for the scales. This needs no other model and no
    other pictures, but it does not measure drawing or describing alone: a model that draws and describes a thing wrong
    in the same way gets a high score, and a model that draws well and describes badly gets a low one.
    """

    columns: ClassVar[dict[str, str]] = {"recaption_cider": "more", "recaption_bleu": "more"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        check_package()
        described = subject.write(subject.drawn)
        prompts = [(prompt,) for prompt in subject.prompts]
        return {"recaption_cider": cider(described, prompts), "recaption_bleu": bleu(described, prompts)}
