"""Metric of how often a model itself begins an image."""

from dataclasses import replace
from typing import ClassVar

from lit_transfusion.errors import check_at_least
from lit_transfusion.evaluation.metric import Metric, Subject


class ImageShare(Metric):
    """Share of the prompts, in [0, 1], after which the model itself begins an image.

    It may first write text, of fewer than `max_new_tokens` tokens. Other metrics force the image; this metric shows
    whether that is needed. No image is drawn.

    Args:
        max_new_tokens: A sample with this many text tokens and no image counts as one without an image.
    """

    columns: ClassVar[dict[str, str]] = {"image_share": "more"}

    def __init__(self, max_new_tokens: int = 64) -> None:
        check_at_least("ImageShare.max_new_tokens", max_new_tokens)
        self.max_new_tokens = max_new_tokens

    def __call__(self, subject: Subject) -> dict[str, float]:
        from lit_transfusion.generation.engine import generate
        from lit_transfusion.generation.prompts import prompt_document
        from lit_transfusion.generation.sample_state import StopReason

        # With max_images=0, a sample ends where it would begin an image.
        sampling = replace(subject.sampling, max_images=0, max_new_tokens=self.max_new_tokens, guidance_scale=1.0)
        begun = 0
        for rows in subject.batches(len(subject.prompts)):
            subject.on_progress("waiting for images", rows.start, len(subject.prompts))
            prompts = [prompt_document(subject.pipeline, subject.prompts[i], cut=True) for i in rows]
            seeds = [subject.sampling.seed + i for i in rows]
            samples = generate(subject.pipeline, prompts, sampling, seeds=seeds)
            begun += sum(sample.stop_reason is StopReason.IMAGE_LIMIT for sample in samples)
        return {"image_share": begun / len(subject.prompts)}
