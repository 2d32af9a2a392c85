"""Scenes of coloured shapes on white: drawing objects, all possible scenes, and their captions.

`source.py` makes captioned pictures of them, `edits.py` makes edits, and `scorer.py` reads pictures.

Lengths are in sides of the picture, x to the right and y downwards, so that scenes do not depend on the resolution.
"""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import product, zip_longest
from random import Random
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------------------- drawing

# RGB, 0 to 255. Each colour has a channel at 0, so the darkest channel of a pixel shows how much of it is covered.
COLOURS = {
    "red": (230, 0, 0),
    "green": (0, 150, 40),
    "blue": (0, 80, 255),
    "yellow": (255, 205, 0),
    "purple": (160, 0, 190),
    "black": (0, 0, 0),
}


def circle(x: "Tensor", y: "Tensor") -> "Tensor":
    return (x**2 + y**2).sqrt() - 1


def square(x: "Tensor", y: "Tensor") -> "Tensor":
    return x.abs().maximum(y.abs()) - 1


def triangle(x: "Tensor", y: "Tensor") -> "Tensor":
    return (y - 1).maximum((2 * x.abs() - y - 1) / math.sqrt(5))  # base at the bottom, two equal sides


def cross(x: "Tensor", y: "Tensor") -> "Tensor":
    x, y = x.abs(), y.abs()
    return (x.minimum(y) - 1 / 3).maximum(x.maximum(y) - 1)  # two bars, a third as wide as long


# Signed distance to the rim of a shape that fills the box [-1, 1]², negative inside. x (S,), y (S, 1) → (S, S).
SHAPES: "dict[str, Callable[[Tensor, Tensor], Tensor]]" = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "cross": cross,
}


class DrawnObject(NamedTuple):
    """One object of a picture."""

    colour: str
    shape: str
    centre: tuple[float, float]  # (x, y) of its bounding box
    size: float  # side of its bounding box


def coverage(
    distance: "Callable[[Tensor, Tensor], Tensor]",
    centre: "tuple[float | Tensor, float | Tensor]",
    size: "float | Tensor",
    image_size: int,
    softness: float = 1.0,
) -> "Tensor":
    """The share of each pixel that a shape covers: (image_size, image_size) in [0, 1], with a smooth rim.

    `distance` is one of SHAPES or a similar function; the rim is `softness` pixels wide. Centres and sizes of shape
    (N, 1, 1) give (N, image_size, image_size).
    """
    import torch

    axis = (torch.arange(image_size) + 0.5) / image_size  # (S,) centres of the pixels
    x = (axis - centre[0]) / (size / 2)
    y = (axis[:, None] - centre[1]) / (size / 2)
    pixels = distance(x, y).mul_(size / 2 * image_size)  # to the rim; changed in place, since this is most of the time
    return pixels.div_(-softness).add_(0.5).clamp_(0, 1)


def draw(objects: Sequence[DrawnObject], image_size: int) -> "Tensor":
    """Draw objects on white: (3, image_size, image_size) in [-1, 1]."""
    import torch  # here, since it takes a second, and the --help of commands that name sources is quick

    image = torch.ones(3, image_size, image_size)
    for colour, shape, centre, size in objects:
        paint = torch.tensor(COLOURS[colour]).view(3, 1, 1) / 127.5 - 1
        image.lerp_(paint, coverage(SHAPES[shape], centre, size, image_size))
    return image


# -------------------------------------------------------------------------------------------------------------- scenes

SIZES = {"small": 0.3, "medium": 0.42, "large": 0.56}  # side of the bounding box of a single object
SIZES_OF_SEVERAL = {"small": 0.25, "medium": 0.34}  # if up to four must fit
SIZE_JITTER = 0.01
PLACES = {  # column and row
    "at the top left": (-1, -1),
    "at the top": (0, -1),
    "at the top right": (1, -1),
    "at the left": (-1, 0),
    "in the centre": (0, 0),
    "at the right": (1, 0),
    "at the bottom left": (-1, 1),
    "at the bottom": (0, 1),
    "at the bottom right": (1, 1),
}
PLACE_JITTER = 0.03
MARGIN = 0.05  # distance of an object from the edge of the picture, before jitter
QUARTERS = tuple(product((0.25, 0.75), repeat=2))  # centres of several objects of at most medium size: two pixels apart
RELATIONS = {"left of": "right of", "above": "below"}  # each with its reverse
NUMBERS = {"two": 2, "three": 3, "four": 4}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}

# In diagonal order: without the first 18 pairs or fewer, the rest still contains every colour and every shape.
PAIRS = tuple(
    (colour, tuple(SHAPES)[(column + diagonal) % len(SHAPES)])
    for diagonal in range(len(SHAPES))
    for column, colour in enumerate(COLOURS)
)


def centre(place: str, size: float) -> tuple[float, float]:
    """The centre (x, y) of an object of this size at this place."""
    column, row = PLACES[place]
    room = 0.5 - MARGIN - size / 2
    return 0.5 + column * room, 0.5 + row * room


def jitter(value: float, amount: float, random: Random) -> float:
    return value + random.uniform(-amount, amount)


class Scene:
    """Everything that a caption can describe in a picture. `layout` adds the rest, such as jitter."""

    wordings: ClassVar[tuple[str, ...]]  # the most detailed first
    held_out_wordings: ClassVar[tuple[str, ...]]  # never in training, though each of their words is

    @classmethod
    def every(cls) -> "list[Scene]":
        """All scenes of this kind."""
        raise NotImplementedError

    def pairs(self) -> list[tuple[str, str]]:
        """(colour, shape) of each of its objects."""
        raise NotImplementedError

    def words(self) -> dict[str, str]:
        """The values for the placeholders of the wordings."""
        raise NotImplementedError

    def layout(self, random: Random) -> list[DrawnObject]:
        """Place the objects with a small jitter that keeps all captions true."""
        raise NotImplementedError


@dataclass(frozen=True)
class Single(Scene):
    """One object with a size and a place."""

    colour: str
    shape: str
    size: str
    place: str

    wordings = (
        "a {size} {colour} {shape} {place}",
        "{place} there is a {size} {colour} {shape}",
        "the {shape} {place} is {size} and {colour}",
        "a {colour} {shape} {place}",
        "a {size} {colour} {shape}",
        "a {colour} {shape}",
    )
    held_out_wordings = (
        "there is a {size} {colour} {shape} {place}",
        "the {colour} {shape} is {size} and {place}",
    )

    @classmethod
    def every(cls) -> "list[Scene]":
        return [cls(*pair, size, place) for pair, size, place in product(PAIRS, SIZES, PLACES)]

    def pairs(self) -> list[tuple[str, str]]:
        return [(self.colour, self.shape)]

    def words(self) -> dict[str, str]:
        return {"colour": self.colour, "shape": self.shape, "size": self.size, "place": self.place}

    def layout(self, random: Random) -> list[DrawnObject]:
        x, y = (jitter(c, PLACE_JITTER, random) for c in centre(self.place, SIZES[self.size]))
        return [DrawnObject(self.colour, self.shape, (x, y), jitter(SIZES[self.size], SIZE_JITTER, random))]


@dataclass(frozen=True)
class Relation(Scene):
    """Two different objects, the first left of or above the second. The reverse relation describes the same scene."""

    colour: str
    shape: str
    second_colour: str
    second_shape: str
    relation: str

    wordings = (
        "a {first} {relation} a {second}",
        "a {second} {reverse} a {first}",
        "the {first} is {relation} the {second}",
        "the {second} is {reverse} the {first}",
        "a {second} and a {first}",
        "there is a {first} and a {second}",
    )
    held_out_wordings = (
        "there is a {first} {relation} a {second}",
        "{reverse} the {first} there is a {second}",
    )

    @classmethod
    def every(cls) -> "list[Scene]":
        return [cls(*a, *b, relation) for a, b, relation in product(PAIRS, PAIRS, RELATIONS) if a != b]

    def pairs(self) -> list[tuple[str, str]]:
        return [(self.colour, self.shape), (self.second_colour, self.second_shape)]

    def words(self) -> dict[str, str]:
        first, second = (f"{colour} {shape}" for colour, shape in self.pairs())
        return {"first": first, "second": second, "relation": self.relation, "reverse": RELATIONS[self.relation]}

    def layout(self, random: Random) -> list[DrawnObject]:
        objects = []
        for pair, along in zip(self.pairs(), (0.25, 0.75), strict=True):
            along, across = jitter(along, PLACE_JITTER, random), jitter(0.5, 3 * PLACE_JITTER, random)
            centre = (along, across) if self.relation == "left of" else (across, along)
            objects.append(DrawnObject(*pair, centre, random.uniform(*SIZES_OF_SEVERAL.values())))
        return objects


@dataclass(frozen=True)
class Count(Scene):
    """Two to four equal objects."""

    colour: str
    shape: str
    size: str
    number: str

    wordings = (
        "{number} {size} {colour} {shapes}",
        "{number} {colour} {shapes}",
        "there are {number} {colour} {shapes}",
        "the {number} {shapes} are {colour}",
        "the {number} {shapes} are {size} and {colour}",
    )
    held_out_wordings = (
        "there are {number} {size} {colour} {shapes}",
        "the {number} {colour} {shapes} are {size}",
    )

    @classmethod
    def every(cls) -> "list[Scene]":
        return [cls(*pair, size, number) for pair, size, number in product(PAIRS, SIZES_OF_SEVERAL, NUMBERS)]

    def pairs(self) -> list[tuple[str, str]]:
        return [(self.colour, self.shape)] * NUMBERS[self.number]

    def words(self) -> dict[str, str]:
        return {"number": self.number, "size": self.size, "colour": self.colour, "shapes": PLURALS[self.shape]}

    def layout(self, random: Random) -> list[DrawnObject]:
        size = jitter(SIZES_OF_SEVERAL[self.size], SIZE_JITTER, random)
        quarters = random.sample(QUARTERS, NUMBERS[self.number])
        centres = [(jitter(x, PLACE_JITTER, random), jitter(y, PLACE_JITTER, random)) for x, y in quarters]
        return [DrawnObject(self.colour, self.shape, centre, size) for centre in centres]


SCENES: dict[str, type[Scene]] = {"single": Single, "relation": Relation, "count": Count}


def captions_of(scene: Scene, wordings: Sequence[str]) -> tuple[str, ...]:
    return tuple(wording.format(**scene.words()) for wording in wordings)


def held_out_scenes(kind: type[Scene]) -> set[Scene]:
    """A tenth of the scenes of a kind, with at least one for each pair of colour and shape of the first object."""
    return held_out_tenth(kind.every(), lambda scene: scene.pairs()[0])


def held_out_tenth(items: Iterable[T], group_of: Callable[[T], Hashable]) -> set[T]:
    """Choose a tenth of the items of each group, and at least one. Items are dataclasses of words.

    The choice depends only on a hash of their words, so that no seed or option moves one of them into training.
    """
    groups = defaultdict(list)
    for item in items:
        groups[group_of(item)].append(item)
    held_out = set()
    for group in groups.values():
        group.sort(key=lambda item: hashlib.sha256(" ".join(astuple(item)).encode()).digest())
        held_out.update(group[: math.ceil(len(group) / 10)])
    return held_out


def parse_caption(caption: str) -> tuple[tuple[str | None, str | None], ...]:
    """The objects that a caption names, as (colour, shape); None for a missing colour or shape.

    "the square is small and red" → (("red", "square"),); "two red crosses" → (("red", "cross"), ("red", "cross")).
    """
    singular = {plural: shape for shape, plural in PLURALS.items()}
    words = [singular.get(word, word) for word in re.findall(r"[a-z]+", caption.lower())]
    colours = [word for word in words if word in COLOURS]
    shapes = [word for word in words if word in SHAPES]
    number = max((NUMBERS.get(word, 1) for word in words), default=1)
    return tuple(zip_longest(colours, shapes)) * number
