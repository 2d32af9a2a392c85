"""Whether a model tells, given a picture, its caption from those of other pictures."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from lit_transfusion.data.document import Example
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.likelihood import caption_given_image, latents_of, text_likelihoods
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.generation.prompts import caption_read


class RankedCaptions(Metric):
    """Share of the held-out pictures after which their own caption is the likeliest of a few. Chance: 1 / num_choices.

    The choices are a caption of the picture and captions of other pictures, none of them one of its own, word for
    word; one that is true of it all the same makes the question unfair, for every model alike. Each is read after BOS
    and the clean image. `ranked_captions` compares log-likelihoods for each byte of the text, as `acc_bytes` of lm-eval
    does, lest short captions win; `ranked_captions_unnormalised` compares them as they are, as its `acc` does. Where
    several are equally likely, the picture counts for one over their number.

    Args:
        num_choices: Captions to choose from, at least 2.
        seed: Of which captions the others are.
    """

    columns: ClassVar[dict[str, str]] = {"ranked_captions": "more", "ranked_captions_unnormalised": "more"}
    samples: ClassVar[bool] = False

    def __init__(self, num_choices: int = 4, seed: int = 0) -> None:
        if num_choices < 2:
            raise InputError(f"RankedCaptions.num_choices {num_choices} leaves nothing to choose; give at least 2")
        self.num_choices = num_choices
        self.seed = seed

    def __call__(self, subject: Subject) -> dict[str, float]:
        pipeline = subject.pipeline
        choices = [
            [prompt, *others]
            for prompt, others in zip(subject.prompts, self._others(subject.examples, subject.prompts), strict=True)
        ]
        latents = latents_of(pipeline, subject.pictures)
        documents = [
            caption_given_image(pipeline, caption, image)
            for captions, image in zip(choices, latents, strict=True)
            for caption in captions
        ]
        found = text_likelihoods(pipeline, documents, subject.batch_size, on_progress=subject.on_progress)
        scores = [likelihood.log_probability for likelihood in found]
        sizes = [len(caption_read(pipeline, caption).encode()) for captions in choices for caption in captions]
        by_byte = [score / size for score, size in zip(scores, sizes, strict=True)]
        return {
            "ranked_captions": share_of_firsts(by_byte, self.num_choices),
            "ranked_captions_unnormalised": share_of_firsts(scores, self.num_choices),
        }

    def _others(self, examples: Sequence[Example], captions: Sequence[str]) -> list[list[str]]:
        """For each example, captions of others, all different."""
        different = sorted(set(captions))
        drawn = []
        for i, example in enumerate(examples):
            others = [caption for caption in different if caption not in example.captions]
            if len(others) < self.num_choices - 1:
                raise Unavailable(
                    f"example {i} has {len(others)} different captions of others beside its own; {self.num_choices} "
                    f"choices need {self.num_choices - 1}"
                )
            drawn.append(Random(f"{self.seed} {i}").sample(others, self.num_choices - 1))
        return drawn


def share_of_firsts(scores: Sequence[float], num_choices: int) -> float:
    """How often the first of each `num_choices` scores is the highest; one of k that are equally high counts 1/k."""
    rows = [scores[start : start + num_choices] for start in range(0, len(scores), num_choices)]
    return sum((row[0] == max(row)) / row.count(max(row)) for row in rows) / len(rows)
