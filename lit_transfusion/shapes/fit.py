"""Identify the shape of a patch of ink by comparing it with each known shape at its best size and place.

A shape is accepted if its error is small, and if none of its near misses has a much smaller error. Near misses are
other shapes that look similar: a hexagon that is 12 pixels wide differs from a disc by a quarter of a pixel at the rim.
Circles that a good model draws differ by more, so a limit on the error alone cannot distinguish them.

The limits were chosen with `python docs/shape_limits.py` on true pictures, on shapes that the tests do not use, and on
the 64 drawings of docs/images/quickstart.png, of which 62 pass (the others are crosses that lack a part). At 24, 32 and
64 pixels, of 14 other shapes only the heptagon passes. All true pictures pass, also if they are slightly blurred and
noisy; with a blur over 3 x 3 pixels, 18 %, 2 % and 0 % of them fail. At 16 pixels, half of the houses pass, too. A
regular polygon with seven or more corners is read as a circle.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.shapes.scenes import SHAPES, coverage

Distance = Callable[[Tensor, Tensor], Tensor]  # as in SHAPES

MAX_ERROR = 0.05  # squared difference to the best template, divided by the template's area
NO_ERROR = 0.004  # error that the step size of the search leaves; below it, near misses are not compared
MAX_ERROR_BESIDE_OTHERS = 2.0  # limit of the error, divided by the error of the best near miss
SIZE_LIMITS = (0.15, 0.7)  # of an object; objects in scenes have 0.24 to 0.57

# The search for place and size: (step in sides of the picture, width of the rim in pixels). The rim is one pixel wide
# as drawn, and two after a slight blur.
SEARCH = ((0.02, 1.0), (0.01, 1.0), (0.005, 1.0), (0.005, 2.0))
NEIGHBOURS = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=3)))  # (27, 3)


def polygon(corners: int, turn: float) -> Distance:
    """Make the distance function of a regular polygon; `turn` is the angle of the middle of one side, in radians."""
    angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
    normals = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])  # (corners, 2)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        across, down = normals.view(corners, 2, *[1] * max(x.ndim, y.ndim)).unbind(1)
        return (x * across + y * down).amax(0) - math.cos(math.pi / corners)

    return distance


def rounded_square(x: Tensor, y: Tensor) -> Tensor:
    """Distance function of a shape between a circle and a square."""
    return (x**4 + y**4) ** 0.25 - 1


def thick_cross(x: Tensor, y: Tensor) -> Tensor:
    """Distance function of a shape between a cross and a square."""
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.minimum(x, y) - 0.6, torch.maximum(x, y) - 1)


DIAMOND = polygon(4, math.pi / 4)
PENTAGONS = [polygon(5, math.radians(turn)) for turn in range(0, 72, 12)]
HEXAGONS = [polygon(6, math.radians(turn)) for turn in range(0, 60, 10)]
NEAR_MISSES: dict[str, Sequence[Distance]] = {  # for each of SHAPES
    "circle": (rounded_square, DIAMOND, *HEXAGONS, *PENTAGONS),
    "square": (rounded_square, DIAMOND, thick_cross, *PENTAGONS),
    "triangle": (),
    "cross": (thick_cross, DIAMOND),
}


class Fit(NamedTuple):
    """The best place and size of a shape for a patch of ink. Lengths are in sides of the picture."""

    error: float  # squared difference, divided by the area of the shape
    x: float  # centre of its bounding box, from the top left
    y: float
    size: float  # side of its bounding box


def identify(ink: Tensor) -> tuple[str | None, tuple[float, float], float]:
    """Find shape, centre and size of one object from its ink (S, S). The shape is None if it is none of SHAPES."""
    window, scale, left, top = crop(ink)
    fits = zip(SHAPES, best_fits(window, list(SHAPES.values()), scale), strict=True)
    shape, fit = min(fits, key=lambda item: item[1].error)
    size = fit.size * scale
    known = fit.error <= MAX_ERROR and SIZE_LIMITS[0] <= size <= SIZE_LIMITS[1]
    if known and fit.error > NO_ERROR and (others := NEAR_MISSES[shape]):
        limit = fit.error / MAX_ERROR_BESIDE_OTHERS
        known = all(other.error >= limit for other in best_fits(window, others, scale))
    return shape if known else None, (left + fit.x * scale, top + fit.y * scale), size


def crop(ink: Tensor) -> tuple[Tensor, float, float, float]:
    """Crop (S, S) to the square around the ink (W, W), to save time. Also returns its side, left and top, in sides of
    the picture."""
    rows, columns = ink.amax(1).nonzero()[:, 0], ink.amax(0).nonzero()[:, 0]
    side = min(ink.shape[0], 1 + int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 2)
    top, left = (min(max(0, int(inked[0]) - 1), ink.shape[0] - side) for inked in (rows, columns))
    window = ink[top : top + side, left : left + side]
    return window, side / ink.shape[0], left / ink.shape[0], top / ink.shape[0]


def best_fits(ink: Tensor, distances: Sequence[Distance], scale: float) -> list[Fit]:
    """Search for the best size, place and softness of each of K shapes for ink (W, W).

    The search starts from the area and the centre of mass of the ink. Lengths are in sides of the ink, each of which is
    `scale` sides of the picture.
    """
    area, x, y = moments(ink)
    best = []
    for distance in distances:
        shape_area, shape_x, shape_y = moments_of_shape(distance)
        size = (area / shape_area) ** 0.5
        best.append(Fit(math.inf, x - (shape_x - 0.5) * size, y - (shape_y - 0.5) * size, size))

    def all_distances(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([distance(x[k], y[k]) for k, distance in enumerate(distances)])  # (K, 27, W, W)

    for step, softness in SEARCH:
        tried = torch.tensor([fit[1:] for fit in best])[:, None] + step / scale * NEIGHBOURS  # (K, 27, 3)
        x, y, size = tried.clamp_(min=0.01)[..., None, None].unbind(2)  # (K, 27, 1, 1) each
        templates = coverage(all_distances, (x, y), size, ink.shape[0], softness)  # (K, 27, W, W)
        areas = templates.sum((2, 3)).clamp(min=1e-6)  # (K, 27)
        errors = templates.sub_(ink).square_().sum((2, 3)) / areas
        lowest, indices = errors.min(1)  # (K,) each
        found = tried[torch.arange(len(best)), indices].tolist()
        best = [min(fit, Fit(error, *new)) for fit, error, new in zip(best, lowest.tolist(), found, strict=True)]
    return best


def moments(ink: Tensor) -> tuple[float, float, float]:
    """Area, and x and y of the centre of mass, of ink (S, S)."""
    axis = (torch.arange(ink.shape[0]) + 0.5) / ink.shape[0]  # (S,)
    return float(ink.mean()), float((ink.sum(0) @ axis) / ink.sum()), float((ink.sum(1) @ axis) / ink.sum())


@cache
def moments_of_shape(distance: Distance) -> tuple[float, float, float]:
    """The moments of a shape that fills the picture."""
    return moments(coverage(distance, (0.5, 0.5), 1.0, image_size=256))
