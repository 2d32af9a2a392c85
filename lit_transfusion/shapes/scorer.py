"""Reads pictures of coloured shapes, and says how often a model drew, wrote or edited what it was asked for.

The reader sees nothing but the pixels. An object is a connected patch of ink. Its colour is one of the palette if it is
near enough, its shape is a known one if it is close enough (`shape_fit.py`), and otherwise they are None.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_transfusion.shapes.edits import ShapeEdit
from lit_transfusion.shapes.fit import identify
from lit_transfusion.shapes.scenes import COLOURS, DrawnObject, parse_caption

INK = 0.4  # a pixel with more ink than this belongs to an object
SPECK = 0.01  # an object with less ink than this, in areas of the picture, is dirt; the smallest cross has 0.03
NEAR = 0.1  # how far an object may be from the place, and from the size, that it should have; places are 0.3 apart
# By docs/shape_limits.py, 0 % of the mixtures of two palette colours pass that have 20 % of the second, 13 % at 15 %.
COLOUR_DISTANCE = 0.12  # how far a colour may be from the palette's, in RGB of [0, 1]; the palette's are 0.6 apart
PALE = 0.65  # an object whose darkest quarter has less ink than this has none of the colours, which have a channel at 0

Objects = Sequence[tuple[str | None, str | None]]  # (colour, shape) of each; None for what is not known


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
    """What became of an edit."""

    right: bool  # every object that the result must have is there, and nothing else
    other_unchanged: bool  # the object that the instruction does not speak of is where and as it was


def read_picture(image: Tensor) -> list[FoundObject]:
    """The objects in a picture (3, S, S) in [-1, 1] on white, from the top down."""
    image = image.detach().float().cpu()
    colour_ink = (1 - image) / 2  # (3, S, S): what each channel lacks of white
    ink = colour_ink.amax(0).clamp(0, 1)  # (S, S): 1 where a palette colour covers all of the pixel
    objects = []
    for component in connected_components(ink > INK):
        region = F.max_pool2d(component[None].float(), 3, stride=1, padding=1)[0]  # (S, S): with its faint rim
        if (ink * region).mean() < SPECK:
            continue
        weight = ink.square() * component  # its core tells the colour best
        paint = (colour_ink * weight).sum((1, 2)) / (ink * weight).sum()  # (3,): ink of each channel where ink is 1
        covered = torch.einsum("chw,c->hw", colour_ink, paint) / paint.square().sum()  # (S, S): less noisy than ink
        darkest = ink[component].topk(-(-int(component.sum()) // 4)).values.mean()
        colour = nearest_colour(1 - paint) if darkest >= PALE else None
        objects.append(FoundObject(colour, *identify(covered.clamp(0, 1) * region)))
    return objects


def connected_components(mask: Tensor) -> list[Tensor]:
    """(S, S) bool → one (S, S) bool mask for each group of pixels that touch by a side or a corner."""
    unseen = dict.fromkeys(map(tuple, mask.nonzero().tolist()))  # a set that keeps the reading order
    components = []
    while unseen:
        start = next(iter(unseen))
        del unseen[start]
        group = [start]
        for row, column in group:  # grows as it is read
            for neighbour in [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]:
                if neighbour in unseen:
                    del unseen[neighbour]
                    group.append(neighbour)
        component = torch.zeros_like(mask)
        component[tuple(torch.tensor(group).T)] = True
        components.append(component)
    return components


def nearest_colour(rgb: Tensor) -> str | None:
    """(3,) in [0, 1] → the name of the palette colour at the least distance, None if all are too far."""
    distances = (torch.tensor(list(COLOURS.values())) / 255 - rgb).norm(dim=1)
    return list(COLOURS)[int(distances.argmin())] if distances.min() <= COLOUR_DISTANCE else None


def noise_pictures(number: int, image_size: int) -> Tensor:
    """(number, 3, image_size, image_size) in [-1, 1]: what sampling starts from, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, image_size, image_size, generator=generator).clamp(-1, 1)


def score_pictures(images: Sequence[Tensor] | Tensor, wanted: Sequence[tuple[str, str]]) -> ColourShapeScore:
    """How many pictures (N, 3, S, S) in [-1, 1] show just one object, and of the wanted (colour, shape)."""
    found = [[(one.colour, one.shape) for one in read_picture(image)] for image in images]
    return score(found, [[pair] for pair in wanted])


def score_captions(captions: Sequence[str], wanted: Sequence[tuple[str, str]]) -> ColourShapeScore:
    """How many captions name just one object, and of the wanted (colour, shape)."""
    return score([parse_caption(caption) for caption in captions], [[pair] for pair in wanted])


def shows(found: Sequence[FoundObject], wanted: DrawnObject) -> bool:
    """Whether the wanted object is among those found: its colour and shape, at its place, of its size."""
    return any(
        (one.colour, one.shape) == (wanted.colour, wanted.shape)
        and all(abs(a - b) <= NEAR for a, b in zip(one.centre, wanted.centre, strict=True))
        and abs(one.size - wanted.size) <= NEAR
        for one in found
    )


def score_edited(images: Sequence[Tensor] | Tensor, edits: Sequence[ShapeEdit]) -> list[EditScore]:
    """What each picture (3, S, S) in [-1, 1] made of its edit."""
    scores = []
    for image, edit in zip(images, edits, strict=True):
        found = read_picture(image)
        as_asked = len(found) == len(edit.after) and all(shows(found, wanted) for wanted in edit.after)
        scores.append(EditScore(as_asked, all(shows(found, other) for other in edit.unchanged)))
    return scores


def score(objects: Sequence[Objects], wanted: Sequence[Objects]) -> ColourShapeScore:
    """How many of N pictures or captions, N > 0, have the objects that were wanted and no others, in any order.

    Colours and shapes are also compared by themselves: "a red circle and a blue square" has the right colours and the
    right shapes where a blue circle and a red square were wanted, and both is wrong.
    """
    if len(objects) != len(wanted) or not wanted:
        raise ValueError(f"{len(objects)} answers to {len(wanted)} questions cannot be scored")
    right = Counter()
    for answer, truth in zip(objects, wanted, strict=True):
        right["colour"] += Counter(colour for colour, _ in answer) == Counter(colour for colour, _ in truth)
        right["shape"] += Counter(shape for _, shape in answer) == Counter(shape for _, shape in truth)
        right["both"] += Counter(answer) == Counter(map(tuple, truth))
    return ColourShapeScore(*(right[name] / len(wanted) for name in ColourShapeScore._fields))
