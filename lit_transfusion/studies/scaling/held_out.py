"""A test of a fitted law: predict the largest runs from the smaller ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_transfusion.errors import InputError
from lit_transfusion.studies.interval import Interval
from lit_transfusion.studies.scaling.bootstrap import interval, resampled_log_losses
from lit_transfusion.studies.scaling.parity import fit_trend, frontier, trend_of
from lit_transfusion.studies.scaling.points import Point, levels, log_losses
from lit_transfusion.studies.scaling.power_law import fit_power_law, refit_power_law


class HeldOut(NamedTuple):
    """The loss that was predicted for the largest runs, and the loss that was measured."""

    size: str
    flops: float
    law: str  # "power law", or "trend" if the smaller runs are too few for a power law
    predicted: float
    interval: Interval | None  # of the measured loss; None if no two runs have the same size and tokens
    measured: float  # mean over the runs, of their logarithms
    error: float  # predicted / measured - 1


def predict_largest(points: Sequence[Point], column: str) -> HeldOut:
    """Predict the last point of the largest size from the runs of the other sizes.

    The largest size is the one with most parameters among those with the most FLOPs. All points of its runs are held
    out. A trend is fitted to the frontier of the others.

    The interval includes the noise of the held-out runs. In the simulations of `resampled_log_losses`, it contains the
    measured loss in 92 to 99 % of the cases. This holds if the law does; a loss outside the interval shows that it
    does not.

    Args:
        points: Points of one model.
        column: A loss.

    Raises:
        InputError: A loss has no logarithm, or the smaller runs are too few, also for a trend.
    """
    logs = log_losses(points, column)
    flops = levels([point.flops for point in points])
    at_most_flops = [i for i, level in enumerate(flops) if level == flops.max()]
    largest = points[max(at_most_flops, key=lambda i: points[i].parameters)]
    rows = [i for i in at_most_flops if points[i].size == largest.size]
    rest = [point for point in points if point.size != largest.size]
    if not rest:
        raise InputError(f"all runs have the size {largest.size}, so nothing predicts it; add runs of smaller sizes")
    measured = logs[rows].mean()
    law, kept = "power law", rest
    try:
        predicted = fit_power_law(rest, column).predict(largest.parameters, largest.tokens)
    except InputError:
        law, kept = "trend", frontier(rest, column, "less")
        predicted = float(fit_trend(kept, column).predict(largest.flops))
    drawn = resampled_log_losses([*kept, *(points[i] for i in rows)], column, np.random.default_rng(0))
    drawn, held_out = drawn[:, : len(kept)], drawn[:, len(kept) :]
    if law == "power law":
        predictions = refit_power_law(kept, column, drawn).predict(largest.parameters, largest.tokens)
    else:
        predictions = trend_of(kept, drawn).predict(largest.flops)
    noise = np.exp(held_out.mean(1) - measured)
    error = predicted / float(np.exp(measured)) - 1
    found = interval(predictions * noise)
    return HeldOut(largest.size, largest.flops, law, predicted, found, float(np.exp(measured)), error)
