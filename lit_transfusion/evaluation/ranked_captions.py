"""Metric of whether a model ranks the caption of a picture above those of other pictures."""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar

from lit_transfusion.errors import check_at_least
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable

if TYPE_CHECKING:
    from lit_transfusion.data.types import Example


class RankedCaptions(Metric):
    """Share of held-out pictures whose own caption is the likeliest of `num_choices`. Chance is 1 / num_choices.

    The pictures are put into groups of `num_choices`, and each picture is tested with the captions of its whole group.
    So each caption is the right answer once, and a wrong answer for each other picture of the group: a model that
    ignores the picture gets exactly 1 / num_choices, even if it knows which captions are frequent. In a group, no
    caption of one picture is, word for word, a caption of another. Pictures that do not fill a group are left out.

    Each caption is read after BOS and the clean image. `ranked_captions` compares log-likelihoods divided by the bytes
    of the text, like `acc_bytes` of lm-eval, so that short captions have no advantage; `ranked_captions_unnormalised`
    compares log-likelihoods, like `acc`. If k captions are equally likely, the picture counts 1 / k.

    Args:
        num_choices: Number of captions to choose from, at least 2.
        seed: Seed for the groups.
    """

    columns: ClassVar[dict[str, str]] = {"ranked_captions": "more", "ranked_captions_unnormalised": "more"}
    samples: ClassVar[bool] = False

    def __init__(self, num_choices: int = 4, seed: int = 0) -> None:
        check_at_least("RankedCaptions.num_choices", num_choices, 2)
        self.num_choices = num_choices
        self.seed = seed

    def __call__(self, subject: Subject) -> dict[str, float]:
        from lit_transfusion.evaluation.likelihood import caption_given_image, latents_of, text_likelihoods
        from lit_transfusion.generation.prompts import caption_read

        pipeline = subject.pipeline
        groups = self._groups(subject.examples, subject.prompts)
        latents = latents_of(pipeline, subject.pictures)
        asked = [(i, [i, *(other for other in group if other != i)]) for group in groups for i in group]
        choices = [[subject.prompts[j] for j in members] for _, members in asked]  # the right one first
        documents = [
            caption_given_image(pipeline, caption, latents[i])
            for (i, _), captions in zip(asked, choices, strict=True)
            for caption in captions
        ]
        found = text_likelihoods(pipeline, documents, subject.batch_size, on_progress=subject.on_progress)
        scores = [likelihood.log_probability for likelihood in found]
        sizes = [len(caption_read(pipeline, caption).encode()) for captions in choices for caption in captions]
        by_byte = [score / size for score, size in zip(scores, sizes, strict=True)]
        right = {
            "ranked_captions": firsts(by_byte, self.num_choices),
            "ranked_captions_unnormalised": firsts(scores, self.num_choices),
        }
        subject.each.update(right)
        return {column: sum(scores) / len(scores) for column, scores in right.items()}

    def baselines(self, subject: Subject) -> dict[str, dict[str, float]]:
        return {"chance": dict.fromkeys(self.columns, 1 / self.num_choices)}

    def _groups(self, examples: "Sequence[Example]", captions: Sequence[str]) -> list[list[int]]:
        """Groups of `num_choices` example indices; `captions` has the tested caption of each example."""
        order = list(range(len(examples)))
        Random(self.seed).shuffle(order)
        filling: list[list[int]] = []
        groups = []
        for i in order:
            own = examples[i].captions
            fits = (
                g for g in filling if all(captions[j] not in own and captions[i] not in examples[j].captions for j in g)
            )
            group = next(fits, None)
            if group is None:
                group = []
                filling.append(group)
            group.append(i)
            if len(group) == self.num_choices:
                filling.remove(group)
                groups.append(group)
        if not groups:
            raise Unavailable(
                f"num_choices {self.num_choices} is too large: it needs that many pictures without a caption in "
                f"common, and there are {len(set(captions))} different captions of {len(examples)} pictures; use fewer "
                "choices or more examples"
            )
        return groups


def firsts(scores: Sequence[float], num_choices: int) -> list[float]:
    """Whether the first of each `num_choices` scores is the highest: 0 or 1, or 1/k if it is one of k highest."""
    rows = [scores[start : start + num_choices] for start in range(0, len(scores), num_choices)]
    return [(row[0] == max(row)) / row.count(max(row)) for row in rows]
