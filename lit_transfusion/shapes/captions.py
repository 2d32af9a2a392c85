"""How well captions that were written of pictures of shapes agree with what the pictures show."""

from typing import ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.shapes.scenes import parse_caption
from lit_transfusion.shapes.scorer import score
from lit_transfusion.shapes.source import Shapes


class ShapeCaptions(Metric):
    """How often captions of held-out `Shapes` name all the objects of a picture and no others: their colours, their
    shapes, and which colour goes with which shape. What they say of size, place and relation is not judged."""

    columns: ClassVar[dict[str, str]] = {"caption_colour": "more", "caption_shape": "more", "caption_both": "more"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Shares in [0, 1] of the captions."""
        if not isinstance(subject.source, Shapes):
            raise Unavailable(f"it reads captions of Shapes, and the source is {type(subject.source).__name__}")
        truths = [parse_caption(example.captions[0]) for example in subject.examples]  # every caption names all objects
        scores = [
            score([parse_caption(caption)], [truth]) for caption, truth in zip(subject.written, truths, strict=True)
        ]
        right = {f"caption_{name}": [getattr(one, name) for one in scores] for name in ("colour", "shape", "both")}
        subject.each.update(right)
        return {column: sum(each) / len(each) for column, each in right.items()}
