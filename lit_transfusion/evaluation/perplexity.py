"""How well the held-out captions are predicted, by themselves and beside their pictures."""

import math
from typing import ClassVar

from lit_transfusion.evaluation.likelihood import (
    TextLikelihood,
    caption_alone,
    caption_given_image,
    latents_of,
    text_likelihoods,
)
from lit_transfusion.evaluation.metric import Metric, Subject
from lit_transfusion.generation.prompts import caption_read


class Perplexity(Metric):
    """Perplexity of one caption of each held-out picture, over all their tokens together: exp(-Σ log p / Σ tokens).

    `perplexity` is that of BOS caption, and `perplexity_given_image` that of BOS [image] caption with the image clean,
    as the sampler reads a picture that it is to describe. Both count the tokens of the caption and nothing else: in
    training BOI follows it in one order and EOS in the other, so that neither can be foreseen by more than their
    shares. How far the second is below the first is what the model takes from the picture.

    Perplexities depend on the tokenizer. `bits_per_byte`, of the text alone, can be compared between tokenizers: the
    same log-likelihood for each byte of the captions in UTF-8.
    """

    columns: ClassVar[dict[str, str]] = {
        "perplexity": "less",
        "bits_per_byte": "less",
        "perplexity_given_image": "less",
    }
    samples: ClassVar[bool] = False

    def __call__(self, subject: Subject) -> dict[str, float]:
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


def perplexity(likelihoods: list[TextLikelihood]) -> float:
    """Of all the tokens together; a mean of perplexities would depend on how they are grouped."""
    total = sum(likelihood.log_probability for likelihood in likelihoods)
    return math.exp(-total / sum(likelihood.num_tokens for likelihood in likelihoods))
