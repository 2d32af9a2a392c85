"""The report of a scaling comparison: parity FLOP ratios, trends, laws, a prediction, plots, and a CSV of points."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lit_transfusion.errors import InputError
from lit_transfusion.studies.report import ARROWS, Circumstances, left_out, markdown, span, spread
from lit_transfusion.studies.results import skipped_of
from lit_transfusion.studies.runner import Outcome
from lit_transfusion.studies.scaling.bootstrap import interval, resampled_log_losses
from lit_transfusion.studies.scaling.grid import COST, Run
from lit_transfusion.studies.scaling.held_out import predict_largest
from lit_transfusion.studies.scaling.iso_flop import fit_iso_flop
from lit_transfusion.studies.scaling.parity import fit_trend, parity_ratio
from lit_transfusion.studies.scaling.points import Point, write_points
from lit_transfusion.studies.scaling.power_law import fit_power_law, refit_power_law
from lit_transfusion.studies.study import Scaling, Study

PARAMETERS = {"total": "all parameters", "without_embedding": "all parameters but the embedding of tokens"}
COUNTS = {
    "counted": "the products that the net needs, forward and backward, with attention for visible keys only",
    "6ND": "6 N D, as in the paper",
}


def write_report(
    study: Study,
    scaling: Scaling,
    runs: Sequence[Run],
    outcomes: Sequence[Outcome],
    context: Circumstances,
    folder: Path,
) -> Path:
    """Write report/README.md and its files from the runs that are finished; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    points = [run.point() for run in runs if run.job.evaluated]
    write_points(points, folder / "points.csv")
    plot(study, scaling, points, folder / "scaling.png")
    failed = [outcome for outcome in outcomes if outcome.error]
    sections = [
        f"# {study.name}: {study.question}",
        str(context),
        f"{len(points)} of {len(runs)} runs. N: {PARAMETERS[scaling.parameters]}. FLOPs: {COUNTS[scaling.count]}. Runs "
        "of one seed that differ only in length share the part before their learning rates decay; each counts the "
        "tokens and FLOPs of a run of its own. Intervals are those of 95 % over seeds. [All points](points.csv).",
        "![Metrics by FLOPs](scaling.png)",
        *(parity_section(study, scaling, points) if scaling.baseline and scaling.challenger else []),
        *trend_section(study, scaling, points),
        *largest_section(study, scaling, points),
        *law_section(study, scaling, points),
        *(iso_flop_section(study, scaling, points) if scaling.flops else []),
        "## Results",
        results_table(study, scaling, runs),
        "## Cost",
        "Tokens and FLOPs are those of the longest run.",
        markdown([COST, *{run.cell.name: run.cell.cost for run in runs}.values()]),
        *left_out(failed, skipped_of([run.job for run in runs])),
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def points_of(points: Sequence[Point], arm: str, column: str) -> list[Point]:
    return [point for point in points if point.model == arm and column in point.losses]


Cells = Callable[[list[Point], str], list[str]]  # points of an arm and a column → cells of a row


def rows_of(study: Study, scaling: Scaling, points: Sequence[Point], cells: Cells, only: str = "") -> list[list[str]]:
    """A row for each column and each arm that has it, with the reason in place of numbers where a fit is impossible.

    `only` is the direction of the columns to use, "less" for losses; empty for all.
    """
    rows = []
    for column in (column for column in scaling.columns if only in ("", study.directions[column])):
        for arm in study.arms:
            if own := points_of(points, arm, column):
                rows.append([named(study, column), arm, *or_reason(partial(cells, own, column))])
    return rows


def named(study: Study, column: str) -> str:
    """A column with the arrow of its better direction."""
    return column + ARROWS[study.directions[column]]


def or_reason(cells: Callable[[], list[str]]) -> list[str]:
    """The cells of a row, or the reason why they do not exist."""
    try:
        return cells()
    except InputError as error:
        return [f"({error})"]


def parity_section(study: Study, scaling: Scaling, points: Sequence[Point]) -> list[str]:
    """The share of the baseline's FLOPs with which the challenger's trend reaches the baseline's trend."""

    def cells(baseline: list[Point], challenger: list[Point], column: str) -> list[str]:
        found = parity_ratio(baseline, challenger, column, study.directions[column])
        outside = "**yes**" if found.extrapolated else "no"
        return [f"{found.ratio:.3g}", span(found.interval, ".3g"), f"{found.value:.4g}", outside]

    rows = [["measured by", "paper", "parity FLOP ratio", "95 % interval", "baseline's value", "extrapolated"]]
    for column in scaling.columns:
        both = [points_of(points, arm, column) for arm in (scaling.baseline, scaling.challenger)]
        if all(both):
            theirs = f"{scaling.paper[column]:g}" if column in scaling.paper else "–"
            rows.append([named(study, column), theirs, *or_reason(partial(cells, *both, column))])
    text = (
        f"FLOPs with which {scaling.challenger} reaches what {scaling.baseline} reaches with the most FLOPs, as a "
        "share of these, by trend lines of log metric over log FLOPs (paper, Table 3). Where the ratio is "
        "extrapolated, it lies outside the FLOPs that were measured: do not trust its size."
    )
    return ["## Parity", text, markdown(filled(rows))] if len(rows) > 1 else []


def trend_section(study: Study, scaling: Scaling, points: Sequence[Point]) -> list[str]:
    def cells(own: list[Point], column: str) -> list[str]:
        return [f"{fit_trend(own, column).slope:+.4f}"]

    rows = rows_of(study, scaling, points, cells)
    return ["## Trends", "metric ∝ FLOPs ^ slope.", markdown([["metric", "arm", "slope"], *rows])] if rows else []


def largest_section(study: Study, scaling: Scaling, points: Sequence[Point]) -> list[str]:
    """What the smaller sizes predict for the largest, beside what was measured."""

    def cells(own: list[Point], column: str) -> list[str]:
        found = predict_largest(own, column)
        numbers = [
            f"{found.predicted:.4g}",
            span(found.interval, ".3g"),
            f"{found.measured:.4g}",
            f"{found.error:+.1%}",
        ]
        return [found.size, found.law, *numbers]

    rows = rows_of(study, scaling, points, cells, "less")
    head = ["loss", "arm", "size", "predicted by", "predicted", "95 % interval", "measured", "error"]
    text = "The last run of the largest size, predicted without any run of this size."
    return ["## The largest size", text, markdown(filled([head, *rows]))] if rows else []


def law_section(study: Study, scaling: Scaling, points: Sequence[Point]) -> list[str]:
    def cells(own: list[Point], column: str) -> list[str]:
        law = fit_power_law(own, column)
        logs = resampled_log_losses(own, column, np.random.default_rng(0))
        drawn = refit_power_law(own, column, logs) if len(logs) else None
        found = []
        for name in ("E", "A", "alpha", "B", "beta", "exponent"):
            of_seeds = None if drawn is None else interval(getattr(drawn, name))
            found.append(f"{getattr(law, name):.3g} {span(of_seeds, '.3g')}")
        return found

    rows = rows_of(study, scaling, points, cells, "less")
    head = ["loss", "arm", "E", "A", "α", "B", "β", "N ∝ C^a: a"]
    text = (
        "L = E + A / N^α + B / D^β (Hoffmann et al., 2022, approach 3). The best N for C FLOPs grows as C^a, the best "
        "D as C^(1 - a). Intervals that are wide show that these runs do not determine the law."
    )
    return ["## Laws", text, markdown(filled([head, *rows]))] if rows else []


def iso_flop_section(study: Study, scaling: Scaling, points: Sequence[Point]) -> list[str]:
    def cells(own: list[Point], column: str) -> list[str]:
        found = fit_iso_flop(own, column, tolerance=0.05)
        best = "; ".join(
            f"{budget.parameters:.3g}{'' if budget.inside else ' (an end)'} at {budget.flops:.2g}"
            for budget in found.budgets
        )
        return [best, f"{found.exponent:.3g} {span(found.interval, '.3g')}"]

    rows = rows_of(study, scaling, points, cells, "less")
    head = ["loss", "arm", "best N at FLOPs", "N ∝ C^a: a"]
    text = "Parabolas of the loss over log N at each number of FLOPs (Hoffmann et al., 2022, approach 2)."
    return ["## Equal FLOPs", text, markdown(filled([head, *rows]))] if rows else []


def results_table(study: Study, scaling: Scaling, runs: Sequence[Run]) -> str:
    """Mean over seeds of each column, for each net and length."""
    rows = [["arm", "size", "steps", "FLOPs", "seeds", *(named(study, column) for column in scaling.columns)]]
    of: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        of.setdefault((run.cell.name, run.steps), []).append(run)
    for same in of.values():
        points = [run.point() for run in same if run.job.evaluated]
        cell, steps = same[0].cell, same[0].steps
        measured = [point.losses for point in points]
        numbers = [spread([one[column] for one in measured if column in one]) for column in scaling.columns]
        rows.append([cell.arm, cell.size, f"{steps:,}", f"{cell.flops * steps:.2e}", f"{len(points)}", *numbers])
    return markdown(rows)


def plot(study: Study, scaling: Scaling, points: Sequence[Point], path: Path) -> None:
    """Each column over FLOPs, with the trend line of each arm (paper, Figure 5).

    Axes are logarithmic, but that of a column in which a number is not above 0.
    """
    columns = [column for column in scaling.columns if any(column in point.losses for point in points)]
    figure = Figure(figsize=(5 * max(len(columns), 1), 4), layout="constrained")
    panels = figure.subplots(1, max(len(columns), 1), squeeze=False)[0]
    for ax, column in zip(panels, columns, strict=False):
        for number, arm in enumerate(study.arms):
            own = points_of(points, arm, column)
            if not own:
                continue
            ax.scatter([p.flops for p in own], [p.losses[column] for p in own], s=14, color=f"C{number}", alpha=0.6)
            try:
                trend, flops = fit_trend(own, column), np.array(sorted({point.flops for point in own}))
            except InputError:
                trend = None
            line = ([], []) if trend is None else (flops, trend.predict(flops))
            ax.plot(*line, color=f"C{number}", label=arm)
        positive = all(point.losses.get(column, 1) > 0 for point in points)
        ax.set(xscale="log", yscale="log" if positive else "linear", xlabel="floating-point operations", title=column)
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def filled(rows: list[list[str]]) -> list[list[str]]:
    """Rows of equal length: a row with a reason in place of its numbers is shorter."""
    return [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]
