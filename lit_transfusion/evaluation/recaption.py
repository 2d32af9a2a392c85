"""Whether a model recognises what it has drawn."""

from typing import ClassVar

from lit_transfusion.evaluation.captions import bleu, check_package, cider
from lit_transfusion.evaluation.metric import Metric, Subject


class RecaptionConsistency(Metric):
    """How near a model's description of its own drawing is to the prompt that it drew, by CIDEr and BLEU.

    The prompt is the only caption that a description is compared with; see `CIDEr` and `BLEU` for the scales. It asks
    nothing of other models or of pictures, but it is no measure of either skill alone: a model that draws a thing wrong
    and reads it wrong in the same way scores well, and one that draws well and describes badly does not.
    """

    columns: ClassVar[dict[str, str]] = {"recaption_cider": "more", "recaption_bleu": "more"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        check_package()
        described = subject.write(subject.drawn)
        prompts = [(prompt,) for prompt in subject.prompts]
        return {"recaption_cider": cider(described, prompts), "recaption_bleu": bleu(described, prompts)}
