"""Scores of captions for pictures of shapes: constructed captions, true ones, and those of other pictures."""

import pytest

from lit_transfusion.evaluation.metric import Subject, Unavailable
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.shapes.captions import ShapeCaptions
from lit_transfusion.shapes.edits import ShapeEdits
from lit_transfusion.shapes.scenes import parse_caption
from lit_transfusion.shapes.scorer import score
from lit_transfusion.shapes.source import Shapes


@pytest.mark.parametrize(
    ("caption", "truth", "expected"),
    [
        ("a red circle", "the circle is red", (1, 1, 1)),
        ("a red square", "a red circle", (1, 0, 0)),
        ("a blue circle", "a red circle", (0, 1, 0)),
        ("a circle", "a red circle", (0, 1, 0)),
        ("a blue cross and a red circle", "a red circle left of a blue cross", (1, 1, 1)),
        ("a blue circle and a red cross", "a red circle left of a blue cross", (1, 1, 0)),
        ("a red circle", "a red circle left of a blue cross", (0, 0, 0)),
        ("a red circle and a red cross", "a red circle left of a blue cross", (0, 1, 0)),
        ("two red circles", "two small red circles", (1, 1, 1)),
        ("a red circle and a red circle", "two red circles", (1, 1, 1)),
        ("three red circles", "two red circles", (0, 0, 0)),
        ("a red circle", "two red circles", (0, 0, 0)),
        ("two blue circles", "two red circles", (0, 1, 0)),
        ("", "a red circle", (0, 0, 0)),
    ],
)
def test_objects_are_compared_in_any_order(caption, truth, expected):
    assert score([parse_caption(caption)], [parse_caption(truth)]) == expected


@pytest.fixture
def subject(make_pipeline):
    return Subject(make_pipeline(), Shapes(), num_examples=99)


def test_true_captions_are_right_in_any_wording(subject):
    for wording in range(6):
        subject.written = [example.captions[wording % len(example.captions)] for example in subject.examples]
        assert ShapeCaptions()(subject) == {"caption_colour": 1, "caption_shape": 1, "caption_both": 1}


def test_captions_of_other_pictures_are_wrong(subject):
    """The next picture is of another kind of scene; the third next is of the same kind, so it is right by chance."""
    captions = [example.captions[0] for example in subject.examples]
    subject.written = captions[1:] + captions[:1]
    assert ShapeCaptions()(subject)["caption_both"] == 0
    subject.written = captions[3:] + captions[:3]
    result = ShapeCaptions()(subject)
    assert result["caption_both"] < 0.1 and 0 < result["caption_colour"] < 0.2 and 0 < result["caption_shape"] < 0.3


def test_an_untrained_net_is_measured(make_pipeline):
    pipeline = make_pipeline()
    pipeline.image_size = 16  # no weight depends on it
    sampling = Sampling(max_new_tokens=2)
    result = ShapeCaptions()(Subject(pipeline, Shapes(image_size=16), num_examples=3, sampling=sampling))
    assert list(result) == list(ShapeCaptions.columns) and result["caption_both"] == 0


def test_other_sources_are_not_measured(make_pipeline):
    with pytest.raises(Unavailable, match=r"Shapes.*data\.source is ShapeEdits"):
        ShapeCaptions()(Subject(make_pipeline(), ShapeEdits()))
