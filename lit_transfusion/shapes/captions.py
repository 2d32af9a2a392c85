"""Metric of how often written captions of `Shapes` pictures are right."""

from typing import ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.shapes.scenes import parse_caption


class ShapeCaptions(Metric):
    """Share of the written captions of held-out `Shapes` that name exactly the objects of the picture.

    The columns compare the colours, the shapes, and the pairs of colour and shape. Size,
    place and relation are ignored.
    """

    columns: ClassVar[dict[str, str]] = {"caption_colour": "more", "caption_shape": "more", "caption_both": "more"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Measure the shares of right captions, in [0, 1]."""
        from lit_transfusion.shapes.scorer import score
        from lit_transfusion.shapes.source import Shapes

        source = subject.source.pictures
        if not isinstance(source, Shapes):
            raise Unavailable(f"it needs the source Shapes, but data.source is {type(source).__name__}")
        truths = [parse_caption(example.captions[0]) for example in subject.examples]  # every caption names all objects
        scores = [
            score([parse_caption(caption)], [truth]) for caption, truth in zip(subject.written, truths, strict=True)
        ]
        right = {f"caption_{name}": [getattr(one, name) for one in scores] for name in ("colour", "shape", "both")}
        subject.each.update(right)
        return {column: sum(each) / len(each) for column, each in right.items()}
