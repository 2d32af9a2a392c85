"""The scorer must be right about pictures with known content."""

import math
from collections import Counter
from functools import cache
from random import Random

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_tensor

from lit_transfusion.shapes.edits import EDITS, ShapeEdit, ShapeEdits
from lit_transfusion.shapes.scenes import (
    COLOURS,
    PAIRS,
    SHAPES,
    DrawnObject,
    coverage,
    draw,
    parse_caption,
)
from lit_transfusion.shapes.scorer import (
    ColourShapeScore,
    connected_components,
    read_picture,
    score_captions,
    score_edited,
    score_pictures,
)
from lit_transfusion.shapes.source import Shapes


@cache
def val_pictures(image_size: int) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Pictures (N, 3, S, S) of single objects, and their colours and shapes."""
    source = Shapes(image_size=image_size, scenes=("single",), num_val_examples=120).split("val")
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
    images, wanted = images[:60], wanted[:60]
    noise = 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for noisy in (images + noise, (images + noise).clamp(-1, 1)):
        score = score_pictures(noisy, wanted)
        assert min(score) >= 0.97, score


def test_right_under_mild_blur():
    images, wanted = val_pictures(24)
    score = score_pictures(blur(images[:100], 0.7), wanted[:100])
    assert min(score) >= 0.97, score


def test_at_chance_on_shuffled_labels():
    images, wanted = val_pictures(24)
    shuffled = [wanted[index] for index in torch.randperm(len(wanted), generator=torch.Generator().manual_seed(0))]
    score = score_pictures(images, shuffled)
    assert score.colour < 1 / 6 + 0.06 and score.shape < 1 / 4 + 0.06 and score.both < 1 / 24 + 0.04


@pytest.mark.parametrize("kind", ["relation", "count"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_reads_every_object_of_a_scene(kind, part):
    source = Shapes(num_examples=50, num_val_examples=50, scenes=(kind,)).split(part)
    for example in source:
        found = Counter((one.colour, one.shape) for one in read_picture(example.image))
        assert found == Counter(parse_caption(example.captions[0])), example.captions


@pytest.mark.parametrize("pair", PAIRS)
def test_measures_centre_and_size(pair):
    drawn = DrawnObject(*pair, (0.37, 0.58), 0.33)
    (found,) = read_picture(draw([drawn], 32))
    assert (found.colour, found.shape) == pair
    assert (*found.centre, found.size) == pytest.approx((*drawn.centre, drawn.size), abs=0.01)


def test_background_and_specks_are_not_objects():
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


# Other shapes and colours. The limits were chosen with different ones (docs/shape_limits.py).


def around(corners, inner=1.0, turn=-90.0, flat=1.0):
    """Corners on a circle, or alternating with an inner circle; `flat` is height over width."""
    radii = [1.0 if inner == 1 or k % 2 == 0 else inner for k in range(corners)]
    angles = [math.radians(turn + 360 * k / corners) for k in range(corners)]
    return [(r * math.cos(a), flat * r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


OTHERS = {
    "diamond": around(4),
    "star": around(10, inner=0.4),
    "six-pointed star": around(12, inner=0.55),
    "hexagon": around(6),
    "turned hexagon": around(6, turn=-83),
    "ellipse": around(60, flat=1 / 1.4),
    "tall ellipse": around(60, flat=1.8),
    "half disc": around(60, turn=180)[:31],
    "half disc to the right": around(60, turn=-90)[:31],
}


def draw_other(outline, image_size, random):
    """Draw an outline at a random size and place in a random palette colour: (3, S, S) in [-1, 1]."""
    size, side = random.uniform(0.25, 0.56), 8 * image_size  # oversampled, then averaged
    corners = torch.tensor(outline)
    low, high = corners.amin(0), corners.amax(0)
    middle = torch.tensor([random.uniform(size / 2 + 0.03, 0.97 - size / 2) for _ in "xy"])
    points = side * (middle + size * (corners - (low + high) / 2) / (high - low).max())
    picture = Image.new("RGB", (side, side), "white")
    paint = random.choice(list(COLOURS.values()))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in points.tolist()], fill=paint)
    return 2 * to_tensor(picture.resize((image_size, image_size), Image.Resampling.BOX)) - 1


@pytest.mark.parametrize(
    ("image_size", "at_most"),
    [(24, 0.3), (32, 0.05), (64, 0.0)],  # a hexagon of six pixels looks like a disc
)
@pytest.mark.parametrize("other", OTHERS)
def test_other_shapes_are_not_identified(other, image_size, at_most):
    random = Random(f"{other} {image_size}")
    read = [read_picture(draw_other(OTHERS[other], image_size, random)) for _ in range(20)]
    assert all(one.colour is not None for objects in read for one in objects)
    known = sum(any(one.shape is not None for one in objects) for objects in read)
    assert known <= at_most * len(read), f"{known} of {len(read)} pictures of a {other} are read as a known shape"


@pytest.mark.parametrize("image_size", [24, 32, 64])
def test_two_shapes_that_touch_are_not_identified(image_size):
    random = Random(0)
    for _ in range(20):
        colour, size = random.choice(list(COLOURS)), random.uniform(0.25, 0.34)
        at = [(0.5 - 0.4 * size, 0.5), (0.5 + 0.4 * size, 0.5)]
        image = draw([DrawnObject(colour, random.choice(list(SHAPES)), centre, size) for centre in at], image_size)
        assert [(one.colour, one.shape) for one in read_picture(image)] == [(colour, None)]


@pytest.mark.parametrize(
    "rgb",
    {
        "orange": (255, 165, 0),
        "dark orange": (255, 140, 0),
        "brown": (139, 69, 19),
        "pink": (255, 150, 180),
        "grey": (128, 128, 128),
        "light grey": (150, 150, 150),
        "turquoise": (64, 224, 208),
        "olive": (128, 128, 0),
        "magenta": (255, 0, 255),
        "pale red": (255, 140, 140),
    }.values(),
)
@pytest.mark.parametrize("shape", SHAPES)
def test_other_colours_are_not_identified(shape, rgb):
    paint = torch.tensor(rgb).view(3, 1, 1) / 127.5 - 1
    for size in (0.25, 0.4, 0.56):
        covered = coverage(SHAPES[shape], (0.5, 0.5), size, 24)
        (found,) = read_picture(torch.ones(3, 24, 24).lerp(paint, covered))
        assert found.colour is None


def test_an_object_of_two_colours_has_none():
    image = draw([DrawnObject("red", "square", (0.5, 0.5), 0.4)], 24)
    image[:, 12:] = draw([DrawnObject("blue", "square", (0.5, 0.5), 0.4)], 24)[:, 12:]
    (found,) = read_picture(image)
    assert found.colour is None


@pytest.mark.parametrize("value", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_plain_pictures_show_no_shape(value):
    assert all(one.shape is None for one in read_picture(torch.full((3, 24, 24), value)))


def test_noise_shows_no_coloured_shape():
    generator = torch.Generator().manual_seed(0)
    for spread in (0.3, 0.6, 1.0):
        for image in spread * torch.randn(20, 3, 24, 24, generator=generator):
            assert all(one.colour is None or one.shape is None for one in read_picture(image.clamp(-1, 1)))


def degraded(images, seed):
    """Degrade pictures as a good model might draw them: slightly blurred, noisy, and with slightly wrong colours."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.06 * torch.randn(images.shape, generator=generator)
    shift = 0.03 * torch.randn(*images.shape[:2], 1, 1, generator=generator)
    return (blur(images, 0.5) + noise + shift).clamp(-1, 1)


def share_misread(image_size, number, change=lambda images: images):
    examples = list(Shapes(image_size=image_size, num_examples=number))  # all kinds of scenes
    images = change(torch.stack([example.image for example in examples]))
    found = [Counter((one.colour, one.shape) for one in read_picture(image)) for image in images]
    return sum(a != Counter(parse_caption(e.captions[0])) for a, e in zip(found, examples, strict=True)) / number


@pytest.mark.parametrize("image_size", [16, 24, 32, 64])
def test_true_pictures_are_not_rejected(image_size):
    assert share_misread(image_size, 60) == 0
    assert share_misread(image_size, 40, lambda images: degraded(images, 0)) <= 0.025


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [24, 32, 64])
def test_almost_no_true_picture_of_many_is_rejected(image_size):
    assert share_misread(image_size, 350) == 0
    assert share_misread(image_size, 350, lambda images: degraded(images, 1)) <= 0.005


def test_reads_pictures_of_an_untrained_model():
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(3, 24, 24, generator=generator), -torch.ones(3, 24, 24), torch.full((3, 24, 24), torch.nan)]
    for image in pictures:
        read_picture(image)
    noise = torch.randn(100, 3, 24, 24, generator=generator)
    assert score_pictures(noise, [PAIRS[index % 24] for index in range(100)]).both == 0


def test_more_or_less_than_one_object_is_wrong():
    one = DrawnObject("red", "circle", (0.25, 0.5), 0.3)
    other = DrawnObject("red", "circle", (0.75, 0.5), 0.3)
    images = [draw(objects, 24) for objects in ([one], [one, other], [])]
    assert score_pictures(images, [("red", "circle")] * 3) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_colour_and_shape_are_judged_separately():
    image = draw([DrawnObject("red", "circle", (0.5, 0.5), 0.4)], 24)
    assert score_pictures([image], [("red", "square")]) == ColourShapeScore(colour=1, shape=0, both=0)
    assert score_pictures([image], [("blue", "circle")]) == ColourShapeScore(colour=0, shape=1, both=0)
    captions = ["the circle is red", "a blue circle", "a circle", "a red circle and a red circle"]
    assert score_captions(captions, [("red", "circle")] * 4) == ColourShapeScore(colour=1 / 4, shape=3 / 4, both=1 / 4)


def test_objects_and_wanted_ones_must_be_equally_many():
    with pytest.raises(ValueError, match=r"1 .*2 "):
        score_captions(["a red circle"], [("red", "circle")] * 2)
    with pytest.raises(ValueError, match=r"0 .*at least one"):
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
    source = ShapeEdits(image_size, num_val_examples=100).split("val")
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
    scores = score_edited(outputs.roll(len(EDITS), 0), edits)  # of the same kind of edit
    assert sum(score.right for score in scores) <= 0.01 * len(edits)


def test_each_fault_of_an_edit_is_found():
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
