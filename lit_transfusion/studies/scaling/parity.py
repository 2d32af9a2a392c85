"""Trend lines of a metric over FLOPs, and the parity FLOP ratio of Table 3 of Transfusion (arXiv 2408.11039, 4.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_transfusion.errors import InputError
from lit_transfusion.studies.interval import Interval
from lit_transfusion.studies.scaling.bootstrap import interval, resampled_log_losses
from lit_transfusion.studies.scaling.points import SAME, Point, levels, log_losses


class Trend(NamedTuple):
    """The line log(metric) = intercept + slope * log(FLOPs). Each field is a number, or (resamples,)."""

    intercept: float
    slope: float

    def predict(self, flops: float) -> float:
        """The metric at some FLOPs."""
        return np.exp(self.intercept + self.slope * np.log(flops))


class Parity(NamedTuple):
    """The FLOPs that a challenger needs to reach what a baseline reaches."""

    ratio: float  # FLOPs of the challenger / FLOPs of the baseline; below 1 if the challenger needs fewer
    interval: Interval | None  # of the ratio; None if a model has no two runs of the same size and tokens
    at: float  # FLOPs of the baseline
    value: float  # of the baseline's trend at these FLOPs
    extrapolated: bool  # the FLOPs of the baseline or of the challenger are outside those that were measured


def fit_trend(points: Sequence[Point], column: str) -> Trend:
    """Fit the line to all points by least squares.

    Raises:
        InputError: A number has no logarithm, or all points have the same FLOPs.
    """
    return Trend(*map(float, trend_of(points, log_losses(points, column))))


def trend_of(points: Sequence[Point], logs: np.ndarray) -> Trend:
    """The trend of log numbers (points,) or of resamples of them (resamples, points)."""
    flops = [point.flops for point in points]
    if not levels(flops).any():
        raise InputError(
            f"a trend needs points at 2 or more FLOPs, but all points have about {flops[0]:.3g}; add others"
        )
    log_flops = np.log(flops)
    centred = log_flops - log_flops.mean()
    slope = logs @ centred / (centred @ centred)
    return Trend(logs.mean(-1) - slope * log_flops.mean(), slope)


def frontier(points: Sequence[Point], column: str, direction: str) -> list[Point]:
    """The points that are not beaten by others at equal or fewer FLOPs.

    Runs of the same size and tokens are compared by their mean and stay together, so that their noise remains known.

    Args:
        points: Points of one model.
        column: The metric.
        direction: "more" or "less": what is better.

    Raises:
        InputError: A number has no logarithm.
    """
    worse = -sign_of(direction) * log_losses(points, column)
    flops, tokens = (levels([getattr(point, name) for point in points]) for name in ("flops", "tokens"))
    sizes = np.array([point.size for point in points])
    repeats = (sizes[:, None] == sizes) & (tokens[:, None] == tokens)
    means = repeats @ worse / repeats.sum(1)
    return [point for i, point in enumerate(points) if means[i] <= means[flops <= flops[i]].min()]


def sign_of(direction: str) -> int:
    """1 for "more", -1 for "less"."""
    if direction not in ("more", "less"):
        raise InputError(f"direction {direction!r} is invalid: use more or less, whichever is better in the column")
    return 1 if direction == "more" else -1


def parity_ratio(
    baseline: Sequence[Point], challenger: Sequence[Point], column: str, direction: str, at: float | None = None
) -> Parity:
    """How many FLOPs the challenger needs to reach the baseline, as a share of the baseline's FLOPs.

    The interval is that of `resampled_log_losses`, which states how often it contains the truth. It is infinite if the
    challenger's trend may be flat, and does not include the choice of the points by `frontier`.

    Args:
        baseline: Points of the baseline, all of which its trend is fitted to.
        challenger: Points of the challenger, likewise.
        column: The metric.
        direction: "more" or "less": what is better.
        at: FLOPs of the baseline; its largest if None.

    Raises:
        InputError: A number has no logarithm, a model has points at fewer than 2 FLOPs, or the challenger's trend does
            not improve with FLOPs.
    """
    models, sign = (baseline, challenger), sign_of(direction)
    logs = [log_losses(points, column) for points in models]
    trends = [trend_of(points, one) for points, one in zip(models, logs, strict=True)]
    if sign * trends[1].slope <= 0:
        raise InputError(
            f"{column} of {challenger[0].model} does not improve with FLOPs: its trend is FLOPs^{trends[1].slope:.3g}; "
            "use points of more sizes, or points of the frontier"
        )
    measured = [[point.flops for point in points] for points in models]
    at = max(measured[0]) if at is None else at
    rng = np.random.default_rng(0)
    drawn = [resampled_log_losses(points, column, rng) for points in models]
    num = min(map(len, drawn))
    trends_drawn = [trend_of(points, one[:num]) for points, one in zip(models, drawn, strict=True)]
    with np.errstate(over="ignore"):  # infinite if a trend is almost flat
        ratio, ratios = (np.exp(log_ratio(*both, sign, np.log(at))) for both in (trends, trends_drawn))
    inside = all(
        min(flops) / (1 + SAME) <= needed <= max(flops) * (1 + SAME)
        for flops, needed in zip(measured, (at, at * ratio), strict=True)
    )
    return Parity(float(ratio), interval(ratios), at, float(trends[0].predict(at)), not inside)


def log_ratio(baseline: Trend, challenger: Trend, sign: int, log_flops: float) -> np.ndarray:
    """The log of the ratio; infinite if the challenger's trend does not improve, and thus never reaches the value."""
    missing = baseline.intercept - challenger.intercept + (baseline.slope - challenger.slope) * log_flops
    improves = np.asarray(sign * challenger.slope > 0)
    return np.where(improves, missing / np.where(improves, challenger.slope, 1), np.copysign(np.inf, sign * missing))
