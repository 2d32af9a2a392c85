"""The held-out losses of a study over training: the mean of the seeds of each arm, with their range."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lit_transfusion.run_folder import metrics_files
from lit_transfusion.studies.plan import ArmPlan
from lit_transfusion.studies.runner import Job

LOGGED = re.compile(r"val/(?:(.+)/)?loss_(text|image)")  # names in the metrics files; a mix has one for each source
DECADE = 10  # an axis over less than this ratio has ticks at multiples of a number, otherwise at 1, 2, 5, 10, …


class Curve(NamedTuple):
    """A loss of one run."""

    steps: list[int]
    losses: list[float]


class Band(NamedTuple):
    """A loss of several runs at the steps that all of them have."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curves_of(job: Job) -> dict[str, Curve]:
    """Read the losses by name from the metrics files of all starts; where they overlap, use the later start."""
    points: dict[str, dict[int, float]] = {}
    for path in metrics_files(job.folder):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and LOGGED.fullmatch(name or ""):
                        points.setdefault(name, {})[int(row["step"]) + 1] = float(value)
    return {name: Curve(steps := sorted(found), [found[step] for step in steps]) for name, found in points.items()}


def band_of(curves: Sequence[Curve]) -> Band:
    """The mean and the range of some curves."""
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*map(set, values))) if values else []
    losses = np.array([[one[step] for step in steps] for one in values]).reshape(len(values), len(steps))
    if not steps:
        return Band(*(np.zeros(0) for _ in range(4)))
    return Band(np.array(steps), losses.mean(0), losses.min(0), losses.max(0))


def plot_curves(jobs: Sequence[Job], plans: Sequence[ArmPlan], path: Path) -> None:
    """Plot the losses of all arms, by tokens and by operations. Different kinds of loss have rows of their own."""
    rows = rows_of(jobs, plans)
    figure = Figure(figsize=(11, 3.75 * max(len(rows), 1)), layout="constrained")
    grid = figure.subplots(max(len(rows), 1), 2, sharey="row", sharex="col", squeeze=False)
    colors = {plan.arm: f"C{number % 10}" for number, plan in enumerate(plans)}
    for panels, (label, bands) in zip(grid, rows, strict=False):
        for plan, band in bands:
            for panel, scale in zip(panels, (plan.tokens, plan.flops), strict=True):
                panel.fill_between(band.steps * scale, band.low, band.high, color=colors[plan.arm], alpha=0.15, lw=0)
                panel.plot(band.steps * scale, band.mean, color=colors[plan.arm], marker=".", lw=1.5)
        for panel in panels:
            log_axis(panel, min(band.low.min() for _, band in bands), max(band.high.max() for _, band in bands))
        panels[0].set_ylabel(label)
        label_ends(panels[0], [(band.mean[-1], plan.arm, colors[plan.arm]) for plan, band in bands])
    for panel, name in zip(grid[-1], ("tokens and patches", "floating-point operations"), strict=True):
        panel.set_xlabel(name)
        panel.xaxis.set_major_formatter(EngFormatter())
    figure.savefig(path, dpi=100)


def rows_of(jobs: Sequence[Job], plans: Sequence[ArmPlan]) -> list[tuple[str, list[tuple[ArmPlan, Band]]]]:
    """The label of each kind of loss, with the arms that have it; first those of text."""
    found: dict[tuple[str, str], list[tuple[ArmPlan, Band]]] = {}
    for plan in plans:
        curves = [curves_of(job) for job in jobs if job.arm == plan.arm]
        for name in dict.fromkeys(name for one in curves for name in one):
            source, loss = LOGGED.fullmatch(name).groups(default="")
            kind = "text: cross-entropy"
            if loss == "image":
                kind = "images: cross-entropy of codes" if plan.images_are_tokens else "images: diffusion loss"
            band = band_of([one[name] for one in curves if name in one])
            if len(band.steps):
                found.setdefault((kind, source), []).append((plan, band))
    order = sorted(found, key=lambda key: (not key[0].startswith("text"), key[0] != "images: diffusion loss", key[1]))
    return [(f"{kind}, of {source}" if source else kind, found[kind, source]) for kind, source in order]


def log_axis(panel: Axes, low: float, high: float) -> None:
    """Make the losses logarithmic, with plain numbers at readable ticks; linear if one is not above 0."""
    panel.grid(alpha=0.3)
    if low <= 0:
        return
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(
        MaxNLocator(8, steps=[1, 2, 5, 10]) if high / low < DECADE else LogLocator(subs=(1, 2, 5))
    )
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def label_ends(panel: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write the name of each line (its last value, name, color) to the right of its end, without overlaps."""
    ends = sorted(ends)
    to_axes = panel.transData + panel.transAxes.inverted()
    heights = [to_axes.transform((panel.get_xlim()[0], value))[1] for value, *_ in ends]
    for height, (_, name, color) in zip(apart(heights, min(0.07, 1 / len(ends))), ends, strict=True):
        panel.text(1.02, height, name, color=color, transform=panel.transAxes, va="center", fontsize=8)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights in [0, 1] as far as needed for this gap between them."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    limit = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved
