"""Metric of the perplexity of held-out captions, with and without their pictures."""

import math
from typing import TYPE_CHECKING, ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject

if TYPE_CHECKING:
    from lit_transfusion.evaluation.likelihood import TextLikelihood


class Perplexity(Metric):
    """Perplexity of one caption of each held-out picture, over all tokens together: exp(-Σ log p / Σ tokens).

    `perplexity` is for BOS caption, and `perplexity_given_image` for BOS [image] caption with the clean image, as the
    sampler reads a picture to describe. Both count only the tokens of the caption, because its end cannot be predicted:
    in training, either BOI or EOS follows, depending on the order. The difference between the two shows what the model
    takes from the picture.

    Perplexity depends on the tokenizer. `bits_per_byte`, without the picture, can be compared between tokenizers: it is
    the same log-likelihood for each byte of the captions in UTF-8.
    """

    columns: ClassVar[dict[str, str]] = {
        "perplexity": "less",
        "bits_per_byte": "less",
        "perplexity_given_image": "less",
    }
    samples: ClassVar[bool] = False

    def __call__(self, subject: Subject) -> dict[str, float]:
        from lit_transfusion.evaluation.likelihood import (
            caption_alone,
            caption_given_image,
            latents_of,
            text_likelihoods,
        )
        from lit_transfusion.generation.prompts import caption_read

        pipeline, captions = subject.pipeline, subject.prompts
        latents = latents_of(pipeline, subject.pictures)
        alone = [caption_alone(pipeline, caption) for caption in captions]
        beside = [caption_given_image(pipeline, *pair) for pair in zip(captions, latents, strict=True)]
        alone, beside = (
            text_likelihoods(pipeline, documents, subject.batch_size, on_progress=subject.on_progress)
            for documents in (alone, beside)
        )
        num_bytes = sum(len(caption_read(pipeline, caption).encode()) for caption in captions)
        bits = -sum(likelihood.log_probability for likelihood in alone) / math.log(2)
        return {
            "perplexity": perplexity(alone),
            "bits_per_byte": bits / num_bytes,
            "perplexity_given_image": perplexity(beside),
        }


def perplexity(likelihoods: "list[TextLikelihood]") -> float:
    """Perplexity over all tokens together; a mean of perplexities would depend on the grouping."""
    total = sum(likelihood.log_probability for likelihood in likelihoods)
    return math.exp(-total / sum(likelihood.num_tokens for likelihood in likelihoods))
