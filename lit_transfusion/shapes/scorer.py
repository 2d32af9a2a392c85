"""Read pictures of coloured shapes, and score how often a model draws, writes or edits what is asked.

The reader uses only the pixels. An object is a connected patch of ink. Its colour is the nearest one of the palette,
and its shape the best known one (`fit.py`); each is None if nothing is close enough.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_transfusion.data.sources.base import Source
from lit_transfusion.shapes.edits import ShapeEdit
from lit_transfusion.shapes.fit import identify
from lit_transfusion.shapes.scenes import COLOURS, DrawnObject, parse_caption

INK = 0.4  # a pixel with more ink than this belongs to an object
SPECK = 0.01  # a patch with less ink than this share of the picture is ignored; the smallest cross has 0.03
NEAR = 0.1  # the largest error of an object's place and of its size; places are 0.3 apart
# By docs/shape_limits.py, of mixtures of two palette colours, 0 % pass with 20 % of the second, and 13 % with 15 %.
COLOUR_DISTANCE = 0.12  # the largest distance to a palette colour, in RGB of [0, 1]; palette colours are 0.6 apart
PALE = 0.65  # the colour is None if the darkest quarter has less ink, since palette colours have a channel at 0

Objects = Sequence[tuple[str | None, str | None]]  # (colour, shape) of each; None if unknown


class FoundObject(NamedTuple):
    """An object read from a picture. Lengths are in sides of the picture."""

    colour: str | None  # None if it is none of COLOURS
    shape: str | None  # None if it is none of SHAPES
    centre: tuple[float, float]  # (x, y) of its bounding box, from the top left
    size: float  # side of its bounding box


class ColourShapeScore(NamedTuple):
    """Fractions in [0, 1] of the pictures or captions that are right."""

    colour: float
    shape: float
    both: float


class EditScore(NamedTuple):
    """The score of one edit."""

    right: bool  # the result has exactly the expected objects
    other_unchanged: bool  # the object that is not in the instruction has the same look and place


def read_picture(image: Tensor) -> list[FoundObject]:
    """Find the objects in a picture (3, S, S) in [-1, 1] on white, from top to bottom."""
    image = image.detach().float().cpu()
    colour_ink = (1 - image) / 2  # (3, S, S): difference of each channel from white
    ink = colour_ink.amax(0).clamp(0, 1)  # (S, S): 1 where a palette colour covers all of the pixel
    objects = []
    for component in connected_components(ink > INK):
        region = F.max_pool2d(component[None].float(), 3, stride=1, padding=1)[0]  # (S, S): including its light rim
        if (ink * region).mean() < SPECK:
            continue
        weight = ink.square() * component  # the core shows the colour best
        paint = (colour_ink * weight).sum((1, 2)) / (ink * weight).sum()  # (3,): ink of each channel where ink is 1
        covered = torch.einsum("chw,c->hw", colour_ink, paint) / paint.square().sum()  # (S, S): less noisy than ink
        darkest = ink[component].topk(-(-int(component.sum()) // 4)).values.mean()
        colour = nearest_colour(1 - paint) if darkest >= PALE else None
        objects.append(FoundObject(colour, *identify(covered.clamp(0, 1) * region)))
    return objects


def connected_components(mask: Tensor) -> list[Tensor]:
    """Split a mask (S, S) into masks (S, S) of groups of pixels that touch at a side or a corner."""
    first = torch.arange(mask.numel(), 0, -1.0).view(mask.shape) * mask  # larger for pixels further up, then left
    while True:  # each pixel takes the number of the first pixel of its group
        spread = F.max_pool2d(first[None], 3, stride=1, padding=1)[0] * mask
        if torch.equal(spread, first):
            return [first == number for number in first.unique().flip(0) if number > 0]
        first = spread


def nearest_colour(rgb: Tensor) -> str | None:
    """The name of the palette colour nearest to RGB (3,) in [0, 1]; None if it is too far."""
    distances = (torch.tensor(list(COLOURS.values())) / 255 - rgb).norm(dim=1)
    return list(COLOURS)[int(distances.argmin())] if distances.min() <= COLOUR_DISTANCE else None


def baseline_pictures(source: Source, number: int) -> dict[str, Sequence[Tensor] | Tensor]:
    """Pictures that no model drew for a prompt: noise, and pictures of the source, at most `number` of each."""
    train = source.split("train")
    return {
        "noise": noise_pictures(number, train.image_size),
        "random training pictures": [train[index].image for index in range(min(number, len(train)))],
    }


def noise_pictures(number: int, image_size: int) -> Tensor:
    """Pictures of noise, as sampling starts with: (number, 3, image_size, image_size) in [-1, 1], always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, image_size, image_size, generator=generator).clamp(-1, 1)


def score_pictures(images: Sequence[Tensor] | Tensor, wanted: Sequence[tuple[str, str]]) -> ColourShapeScore:
    """Score pictures (N, 3, S, S) in [-1, 1]: the share with exactly one object, of the wanted (colour, shape)."""
    found = [[(one.colour, one.shape) for one in read_picture(image)] for image in images]
    return score(found, [[pair] for pair in wanted])


def score_captions(captions: Sequence[str], wanted: Sequence[tuple[str, str]]) -> ColourShapeScore:
    """Score captions: the share that names exactly one object, of the wanted (colour, shape)."""
    return score([parse_caption(caption) for caption in captions], [[pair] for pair in wanted])


def shows(found: Sequence[FoundObject], wanted: DrawnObject) -> bool:
    """Whether the wanted object was found: with its colour, shape, place and size."""
    return any(
        (one.colour, one.shape) == (wanted.colour, wanted.shape)
        and all(abs(a - b) <= NEAR for a, b in zip(one.centre, wanted.centre, strict=True))
        and abs(one.size - wanted.size) <= NEAR
        for one in found
    )


def score_edited(images: Sequence[Tensor] | Tensor, edits: Sequence[ShapeEdit]) -> list[EditScore]:
    """Score each edited picture (3, S, S) in [-1, 1]."""
    scores = []
    for image, edit in zip(images, edits, strict=True):
        found = read_picture(image)
        as_asked = len(found) == len(edit.after) and all(shows(found, wanted) for wanted in edit.after)
        scores.append(EditScore(as_asked, all(shows(found, other) for other in edit.unchanged)))
    return scores


def score(objects: Sequence[Objects], wanted: Sequence[Objects]) -> ColourShapeScore:
    """The share of N > 0 pictures or captions that have exactly the wanted objects, in any order.

    Colours and shapes are also compared separately: for a blue circle and a red square, "a red circle and a blue
    square" has the right colours and the right shapes, but `both` is wrong.
    """
    if len(objects) != len(wanted) or not wanted:
        raise ValueError(f"{len(objects)} objects and {len(wanted)} wanted ones: give equally many, and at least one")
    right = Counter()
    for answer, truth in zip(objects, wanted, strict=True):
        right["colour"] += Counter(colour for colour, _ in answer) == Counter(colour for colour, _ in truth)
        right["shape"] += Counter(shape for _, shape in answer) == Counter(shape for _, shape in truth)
        right["both"] += Counter(answer) == Counter(map(tuple, truth))
    return ColourShapeScore(*(right[name] / len(wanted) for name in ColourShapeScore._fields))
