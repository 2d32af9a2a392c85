"""The scorer is only worth its name if it is right about pictures whose content is known."""

from collections import Counter
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from lit_transfusion.data.sources.shape_edits import EDITS, ShapeEdit, ShapeEdits
from lit_transfusion.data.sources.shape_scenes import PAIRS, DrawnObject, draw, parse_caption
from lit_transfusion.data.sources.shapes import Shapes
from lit_transfusion.evaluation.shape_scorer import (
    ColourShapeScore,
    connected_components,
    read_picture,
    score_captions,
    score_edited,
    score_pictures,
)


@cache
def val_pictures(image_size: int) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Pictures (N, 3, S, S) of single objects, and their colours and shapes."""
    source = Shapes(image_size=image_size, scenes=("single",), num_val_examples=400).split("val")
    examples = list(source)
    wanted = [parse_caption(example.captions[0])[0] for example in examples]
    return torch.stack([example.image for example in examples]), wanted


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    kernel = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * sigma**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    return F.conv2d(F.pad(images, (3, 3, 3, 3), mode="replicate"), kernel.expand(3, 1, 7, 7), groups=3)


@pytest.mark.parametrize("image_size", [24, 32, 64])
def test_right_on_ground_truth(image_size):
    score = score_pictures(*val_pictures(image_size))
    assert min(score) >= 0.99, score


@pytest.mark.parametrize("image_size", [24, 32, 64])
def test_right_under_mild_noise(image_size):
    images, wanted = val_pictures(image_size)
    images, wanted = images[:150], wanted[:150]
    noise = 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for noisy in (images + noise, (images + noise).clamp(-1, 1)):
        score = score_pictures(noisy, wanted)
        assert min(score) >= 0.97, score


def test_right_under_mild_blur():
    images, wanted = val_pictures(24)
    score = score_pictures(blur(images[:200], 0.7), wanted[:200])
    assert min(score) >= 0.97, score


def test_at_chance_on_shuffled_labels():
    images, wanted = val_pictures(24)
    shuffled = [wanted[index] for index in torch.randperm(len(wanted), generator=torch.Generator().manual_seed(0))]
    score = score_pictures(images, shuffled)
    assert score.colour < 1 / 6 + 0.06 and score.shape < 1 / 4 + 0.06 and score.both < 1 / 24 + 0.04


@pytest.mark.parametrize("kind", ["relation", "count"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_reads_every_object_of_a_scene(kind, part):
    source = Shapes(num_examples=100, num_val_examples=100, scenes=(kind,)).split(part)
    for example in source:
        found = Counter((one.colour, one.shape) for one in read_picture(example.image))
        assert found == Counter(parse_caption(example.captions[0])), example.captions


@pytest.mark.parametrize("pair", PAIRS)
def test_measures_centre_and_size(pair):
    drawn = DrawnObject(*pair, (0.37, 0.58), 0.33)
    (found,) = read_picture(draw([drawn], 32))
    assert (found.colour, found.shape) == pair
    assert (*found.centre, found.size) == pytest.approx((*drawn.centre, drawn.size), abs=0.01)


def test_ground_and_specks_are_no_objects():
    assert read_picture(torch.ones(3, 24, 24)) == []
    image = draw([DrawnObject("red", "cross", (0.3, 0.3), 0.25)], 24)
    image[:, 20, 18:21] = -1
    (found,) = read_picture(image)
    assert (found.colour, found.shape) == ("red", "cross")


def test_a_blob_has_no_shape():
    image = torch.ones(3, 24, 24)
    image[:, 4:20, 11:13] = -1  # a thin bar
    (found,) = read_picture(image)
    assert found.shape is None and found.colour == "black"


def test_survives_what_an_untrained_model_draws():
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(3, 24, 24, generator=generator), -torch.ones(3, 24, 24), torch.full((3, 24, 24), torch.nan)]
    for image in pictures:
        read_picture(image)
    noise = torch.randn(100, 3, 24, 24, generator=generator)
    assert score_pictures(noise, [PAIRS[index % 24] for index in range(100)]).both < 0.1


def test_more_or_less_than_one_object_is_wrong():
    one = DrawnObject("red", "circle", (0.25, 0.5), 0.3)
    other = DrawnObject("red", "circle", (0.75, 0.5), 0.3)
    images = [draw(objects, 24) for objects in ([one], [one, other], [])]
    assert score_pictures(images, [("red", "circle")] * 3) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_colour_and_shape_are_judged_apart():
    image = draw([DrawnObject("red", "circle", (0.5, 0.5), 0.4)], 24)
    assert score_pictures([image], [("red", "square")]) == ColourShapeScore(colour=1, shape=0, both=0)
    assert score_pictures([image], [("blue", "circle")]) == ColourShapeScore(colour=0, shape=1, both=0)
    captions = ["the circle is red", "a blue circle", "a circle", "a red circle and a red circle"]
    assert score_captions(captions, [("red", "circle")] * 4) == ColourShapeScore(colour=1 / 4, shape=3 / 4, both=1 / 4)


def test_answers_and_questions_must_match_in_number():
    with pytest.raises(ValueError, match="1 answers to 2"):
        score_captions(["a red circle"], [("red", "circle")] * 2)
    with pytest.raises(ValueError, match="0 answers"):
        score_captions([], [])


def test_connected_components_touch_by_sides_and_corners():
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1]], dtype=torch.bool)
    components = connected_components(mask)
    assert sorted(int(component.sum()) for component in components) == [1, 1, 2, 2]
    assert torch.equal(torch.stack(components).sum(0), mask.long())


# Edits


@cache
def val_edits(image_size: int) -> tuple[list[ShapeEdit], torch.Tensor, torch.Tensor]:
    """Held-out edits, and their inputs and outputs (N, 3, S, S)."""
    source = ShapeEdits(image_size, num_val_examples=200).split("val")
    examples = list(source)
    pictures = (torch.stack([e.input_image for e in examples]), torch.stack([e.output_image for e in examples]))
    return [source.edit(index) for index in range(len(source))], *pictures


@pytest.mark.parametrize("image_size", [16, 24, 32])
def test_true_output_of_an_edit_is_right_and_its_input_is_wrong(image_size):
    edits, inputs, outputs = val_edits(image_size)
    right, unchanged = zip(*score_edited(outputs, edits), strict=True)
    assert sum(right) >= 0.99 * len(edits) and sum(unchanged) >= 0.99 * len(edits)
    right, unchanged = zip(*score_edited(inputs, edits), strict=True)
    assert not any(right) and sum(unchanged) >= 0.99 * len(edits)


def test_output_of_an_edit_is_right_under_mild_noise_and_blur():
    edits, _, outputs = val_edits(24)
    noise = 0.1 * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    for image in (outputs + noise, blur(outputs, 0.7)):
        scores = score_edited(image, edits)
        assert sum(score.right for score in scores) >= 0.95 * len(edits)


def test_outputs_of_other_edits_are_wrong():
    edits, _, outputs = val_edits(24)
    scores = score_edited(outputs.roll(len(EDITS), 0), edits)  # of the same kind
    assert sum(score.right for score in scores) <= 0.01 * len(edits)


def test_each_fault_of_an_edit_is_seen():
    red, blue = DrawnObject("red", "circle", (0.2, 0.2), 0.3), DrawnObject("blue", "cross", (0.8, 0.8), 0.3)
    green = red._replace(colour="green")
    asked = ShapeEdit("recolour", ("make the circle green",), (blue, red), (blue, green))
    (truth,) = asked.unchanged
    assert truth == blue
    faults = {
        "nothing": ([], (False, False)),
        "the other object is gone": ([green], (False, False)),
        "the other object is another colour": ([green, blue._replace(colour="black")], (False, False)),
        "the other object is elsewhere": ([green, blue._replace(centre=(0.5, 0.8))], (False, False)),
        "the other object is larger": ([green, blue._replace(size=0.42, centre=(0.75, 0.75))], (False, False)),
        "the object is elsewhere": ([green._replace(centre=(0.2, 0.5)), blue], (False, True)),
        "another shape": ([green._replace(shape="square"), blue], (False, True)),
        "one too many": ([green, blue, red._replace(centre=(0.8, 0.2))], (False, True)),
        "none": ([blue, green._replace(centre=(0.22, 0.18))], (True, True)),
    }
    for name, (objects, expected) in faults.items():
        (score,) = score_edited([draw(objects, 32)], [asked])
        assert tuple(score) == expected, name
