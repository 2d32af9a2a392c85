"""The points of a scaling comparison, and the CSV file that contains them."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import stream_lines

SAME = 0.01  # FLOPs or tokens that differ by less than this share are equal: two seeds rarely see as many tokens


class Point(NamedTuple):
    """What a run has reached after some tokens."""

    model: str  # such as "transfusion"
    size: str
    seed: int
    run: str  # points of one run share it; their losses are correlated
    parameters: float  # N
    tokens: float  # D, seen in training up to this point
    flops: float  # C, used in training up to this point
    losses: dict[str, float]  # column → number, such as the text loss in bits per byte; any metric may be a column


FIELDS = Point._fields[:-1]  # the first columns of the file; the losses come after them


def write_points(points: Sequence[Point], path: Path) -> None:
    """Write a CSV file with one line for each point. A number that a point does not have is an empty cell."""
    columns = list(dict.fromkeys(column for point in points for column in point.losses))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*FIELDS, *columns])
        for point in points:
            writer.writerow([*point[:-1], *(point.losses.get(column, "") for column in columns)])


def read_points(path: Path) -> list[Point]:
    """Read the points that `write_points` has written. All numbers are exactly the same.

    Raises:
        InputError: The file cannot be read, or a cell is missing or invalid.
    """
    reader = csv.reader(stream_lines(path))
    header = next(reader, [])
    if tuple(header[: len(FIELDS)]) != FIELDS or len(set(header)) < len(header):
        expected = ",".join(FIELDS)
        raise InputError(f"{path}, line 1: the columns must be {expected} and then one for each loss, each name once")
    points = []
    for row in filter(None, reader):
        place = f"{path}, line {reader.line_num}"
        if len(row) != len(header):
            raise InputError(f"{place} has {len(row)} cells, but line 1 has {len(header)} columns; fix the line")
        cells = dict(zip(header, row, strict=True))
        if not cells["seed"].isdecimal():
            raise InputError(f"{place}, column seed: {cells['seed']!r} is invalid; write an integer that is at least 0")
        numbers = {name: number(cells[name], f"{place}, column {name}") for name in header[4:] if cells[name]}
        for name in FIELDS[4:]:
            if not 0 < numbers.get(name, 0) < math.inf:
                raise InputError(f"{place}, column {name}: {cells[name]!r} is invalid; write a finite number above 0")
        counts = [numbers.pop(name) for name in FIELDS[4:]]
        points.append(Point(cells["model"], cells["size"], int(cells["seed"]), cells["run"], *counts, numbers))
    return points


def number(cell: str, place: str) -> float:
    """The number in a cell. The loss of a run that diverged may be nan or inf."""
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{place}: {cell!r} is not a number; write a number or leave the cell empty") from None


def log_losses(points: Sequence[Point], column: str) -> np.ndarray:
    """The logarithms of a column.

    Args:
        points: Points of one model.
        column: The column.

    Returns:
        (points,)

    Raises:
        InputError: There are no points, they are of several models, or a number is missing, not finite or not above 0.
    """
    models = list(dict.fromkeys(point.model for point in points))
    if len(models) != 1:
        raise InputError(f"a fit needs the points of one model, but found {', '.join(models) or 'no points'}")
    for point in points:
        if column not in point.losses:
            known = ", ".join(point.losses)
            raise InputError(f"run {point.run}: the column {column!r} is missing, use one of: {known}")
        if not 0 < point.losses[column] < math.inf:
            raise InputError(
                f"run {point.run}: {column} is {point.losses[column]}, which has no logarithm; "
                "leave the run out or use a column with finite numbers above 0"
            )
    return np.log([point.losses[column] for point in points])


def levels(numbers: Sequence[float], tolerance: float = SAME) -> np.ndarray:
    """Which numbers are equal: the index of the level of each, from the lowest level to the highest.

    Args:
        numbers: (points,), positive.
        tolerance: A number is of the same level as the smallest of the level if it is larger by at most this share.

    Returns:
        (points,)
    """
    found, index, smallest = np.empty(len(numbers), dtype=int), -1, -math.inf
    for i in np.argsort(numbers, kind="stable"):
        if numbers[i] > smallest * (1 + tolerance) or index < 0:
            index, smallest = index + 1, numbers[i]
        found[i] = index
    return found
