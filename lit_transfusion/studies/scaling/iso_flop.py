"""The best number of parameters for some FLOPs: approach 2 of Hoffmann et al. (2022, arXiv 2203.15556, 3.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_transfusion.errors import InputError
from lit_transfusion.studies.interval import Interval
from lit_transfusion.studies.scaling.bootstrap import interval, resampled_log_losses
from lit_transfusion.studies.scaling.points import SAME, Point, levels, log_losses
from lit_transfusion.wording import counted


class Budget(NamedTuple):
    """The parabola of the loss over log N at some FLOPs."""

    flops: float
    parameters: float  # N at the minimum; the end with the lower loss if the parabola has no minimum
    interval: Interval | None  # of N; None if no two runs have the same size and tokens
    loss: float  # at the minimum
    inside: bool  # the minimum is inside the sizes that were tried


class IsoFlop(NamedTuple):
    """The law N = coefficient * C^exponent, through the minima that are inside the sizes tried."""

    budgets: list[Budget]
    coefficient: float
    exponent: float
    interval: Interval | None  # of the exponent; None if no two runs have the same size and tokens

    def best_parameters(self, flops: float) -> float:
        """The N with the lowest loss for C FLOPs."""
        return self.coefficient * flops**self.exponent


def fit_iso_flop(points: Sequence[Point], column: str, tolerance: float = SAME) -> IsoFlop:
    """Find the minimum at each budget of FLOPs, and how it grows with FLOPs.

    The intervals are those of `resampled_log_losses`, which states how often they contain the truth. They do not
    include the error of the parabola itself, which is large if the minimum is not in the middle of the sizes (arXiv
    2603.22339).

    Args:
        points: Points of one model.
        column: A loss.
        tolerance: Points are of one budget if their FLOPs differ by at most this share.

    Raises:
        InputError: A loss has no logarithm, a budget has fewer than 3 sizes, or fewer than 2 budgets have their minimum
            inside the sizes tried.
    """
    losses = np.exp(log_losses(points, column))
    drawn = np.exp(resampled_log_losses(points, column, np.random.default_rng(0)))
    levels_of_flops = levels([point.flops for point in points], tolerance)
    budgets, samples = [], []
    for index in range(levels_of_flops.max() + 1):
        rows = np.flatnonzero(levels_of_flops == index)
        log_n = np.log([points[row].parameters for row in rows])
        flops = float(np.exp(np.log([points[row].flops for row in rows]).mean()))
        num_sizes = levels(np.exp(log_n)).max() + 1
        if num_sizes < 3:
            raise InputError(
                f"too few sizes at {flops:.3g} FLOPs: found {num_sizes}, but a parabola needs at least 3; "
                "add runs, leave the points out or use a larger tolerance"
            )
        minimum, loss = map(float, parabola_minimum(log_n, losses[rows]))
        minima, _ = parabola_minimum(log_n, drawn[:, rows])
        inside = bool(log_n.min() < minimum < log_n.max())
        with np.errstate(over="ignore"):  # infinite if the parabola is almost flat
            budgets.append(Budget(flops, float(np.exp(minimum)), interval(np.exp(minima)), loss, inside))
        samples.append(minima)
    used = [i for i, budget in enumerate(budgets) if budget.inside]
    if len(used) < 2:
        found = ", ".join(f"N = {budget.parameters:.3g} at {budget.flops:.3g} FLOPs" for budget in budgets)
        raise InputError(
            f"{column} has its minimum inside the sizes tried at {counted(len(used), 'budget')}, but the law needs 2; "
            f"the minima are {found}; add smaller or larger sizes"
        )
    log_flops = np.log([budgets[i].flops for i in used])
    exponent, intercept = np.polyfit(log_flops, np.log([budgets[i].parameters for i in used]), 1)
    exponents = np.polyfit(log_flops, np.stack([samples[i] for i in used]), 1)[0]
    return IsoFlop(budgets, float(np.exp(intercept)), float(exponent), interval(exponents))


def parabola_minimum(log_n: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The log N and the loss at the minimum of the least-squares parabola over log N.

    A parabola without a minimum gives the end of the sizes at which it is lower.

    Args:
        log_n: (points,)
        losses: (points,) or (resamples, points)
    """
    middle = log_n.mean()
    c2, c1, c0 = np.polyfit(log_n - middle, losses.T, 2)
    ends = np.array([log_n.min(), log_n.max()]) - middle
    lower_end = np.where(c1 + c2 * ends.sum() > 0, *ends)  # the parabola rises from the first end to the last
    x = np.where(c2 > 0, -c1 / (2 * np.where(c2 > 0, c2, 1)), lower_end)
    return middle + x, c0 + c1 * x + c2 * x**2
