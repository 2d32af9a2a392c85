"""Metric of the cross-entropy of held-out pictures after their captions, of models whose images are tokens."""

from typing import ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable


class CodeLoss(Metric):
    """Cross-entropy of the codes of the held-out pictures after one of their captions, in nats per code.

    It is the counterpart of `DiffusionLoss` for images as tokens. Losses can be compared between models with the same
    codec.
    """

    columns: ClassVar[dict[str, str]] = {"code_loss": "less"}
    samples: ClassVar[bool] = False

    def __call__(self, subject: Subject) -> dict[str, float]:
        from lit_transfusion.data.grammar import caption_first
        from lit_transfusion.evaluation.likelihood import code_losses, latents_of
        from lit_transfusion.generation.prompts import caption_tokens

        pipeline = subject.pipeline
        if not pipeline.images_are_tokens:
            raise Unavailable("images are not tokens, so there is no loss of codes; use DiffusionLoss")
        documents = [
            caption_first(caption_tokens(pipeline, caption), image, pipeline.tokenizer)
            for caption, image in zip(subject.prompts, latents_of(pipeline, subject.pictures), strict=True)
        ]
        losses = code_losses(pipeline, documents, subject.batch_size, subject.on_progress)
        return {"code_loss": float(losses.double().mean())}
