"""Metric of the perplexity of held-out texts."""

import math
from typing import ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject


class TextPerplexity(Metric):
    """Perplexity of the held-out texts of the source, over all tokens together, with EOS at the end of each text.

    A text that is longer than a training row is read in pieces, as in training: BOS piece, …, BOS piece EOS.
    `text_loss` is in nats per token, and `text_perplexity` its exponential. Both depend on the tokenizer;
    `text_bits_per_byte`, of the texts in UTF-8, can be compared between tokenizers.
    """

    columns: ClassVar[dict[str, str]] = {
        "text_loss": "less",
        "text_perplexity": "less",
        "text_bits_per_byte": "less",
    }
    samples: ClassVar[bool] = False

    def __call__(self, subject: Subject) -> dict[str, float]:
        from lit_transfusion.data.grammar import text_documents
        from lit_transfusion.data.packing import room_for_text
        from lit_transfusion.evaluation.likelihood import text_likelihoods

        pipeline = subject.pipeline
        documents = []
        for text, complete in subject.texts:
            tokens = pipeline.tokenizer.encode(text)
            length = pipeline.sequence_length or len(tokens) + 2  # None: unknown
            room = room_for_text(length, patches_per_image=0, num_images=0)
            documents += text_documents(tokens, pipeline.tokenizer, room, complete)
        likelihoods = text_likelihoods(pipeline, documents, subject.batch_size, on_progress=subject.on_progress)
        nats = -sum(likelihood.log_probability for likelihood in likelihoods)
        loss = nats / sum(likelihood.num_tokens for likelihood in likelihoods)
        num_bytes = sum(len(example.text.encode()) for example in subject.texts)
        return {
            "text_loss": loss,
            "text_perplexity": math.exp(loss),
            "text_bits_per_byte": nats / math.log(2) / num_bytes,
        }
