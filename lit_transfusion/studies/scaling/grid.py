"""The runs of a scaling comparison: each arm at each size, for several numbers of steps."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.table import Table

from lit_transfusion.errors import InputError
from lit_transfusion.studies.plan import ArmPlan, check_different, clock, fit_arguments, plan_arm
from lit_transfusion.studies.results import flat, measured_of
from lit_transfusion.studies.runner import Job, Trunk
from lit_transfusion.studies.scaling.points import Point
from lit_transfusion.studies.study import Scaling, Study
from lit_transfusion.training.optim import decay_start

COST = ["arm", "size", "N", "steps of each run", "tokens", "FLOPs", "6 N D", "steps that one seed trains"]
TRUNK = "constant_rate"  # folder of the run whose checkpoints the other runs of a seed start from


class Cell(NamedTuple):
    """An arm at a size.

    Args:
        arm: Name of the arm.
        size: Name of the size.
        options: Options of `fit` that set the size.
        plan: The cost of the longest run.
        parameters: N.
        flops: Operations per step.
        lengths: Steps of each run, increasing.
        starts: For each run, the step at which its learning rate begins to decay.
    """

    arm: str
    size: str
    options: list[str]
    plan: ArmPlan
    parameters: int
    flops: float
    lengths: list[int]
    starts: list[int]

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.size}"

    @property
    def cost(self) -> list[str]:
        """The cells of the columns COST. Tokens and FLOPs are those of the longest run."""
        tokens = self.plan.tokens * self.lengths[-1]
        return [
            self.arm,
            self.size,
            f"{self.parameters / 1e6:.3g}M",
            ", ".join(f"{length:,}" for length in self.lengths),
            f"{tokens:.2e}",
            f"{self.plan.flops * self.lengths[-1]:.2e}",
            f"{6 * self.parameters * tokens:.2e}",
            f"{self.trained_steps:,}",
        ]

    @property
    def trained_steps(self) -> int:
        """Steps that one seed trains: those of the constant rate once, and each decay."""
        return self.starts[-1] + sum(length - start for length, start in zip(self.lengths, self.starts, strict=True))


class Run(NamedTuple):
    """One run: a cell trained for a number of steps, at a seed."""

    cell: Cell
    steps: int
    job: Job

    def point(self) -> Point:
        """What was measured, with the costs of the run as if it had been trained alone."""
        cell = self.cell
        return Point(
            model=cell.arm,
            size=cell.size,
            seed=self.job.seed,
            run=f"{cell.arm}/{cell.size}/{self.job.seed}",
            parameters=cell.parameters,
            tokens=cell.plan.tokens * self.steps,
            flops=cell.flops * self.steps,
            losses=measured_of(self.job).columns,
        )


def cells_of(study: Study, scaling: Scaling, overrides: list[str], timed: bool) -> list[Cell]:
    """Plan each arm at each size.

    Raises:
        InputError: A config is invalid, has no WarmupStableDecay, or equals that of another cell.
    """
    cells = []
    for arm in study.arms:
        for size, changes in scaling.sizes.items():
            options = [*options_of(changes), *overrides]
            plan = plan_arm(study, arm, options, timed)
            cells.append(cell_of(study, scaling, arm, size, options, plan))
    check_different(study, [cell.plan for cell in cells])
    return cells


def options_of(changes: dict[str, Any]) -> list[str]:
    """Changes of a config as options of `fit`."""
    return [f"--{key}={json.dumps(value)}" for key, value in flat(changes).items()]


def cell_of(study: Study, scaling: Scaling, arm: str, size: str, options: list[str], plan: ArmPlan) -> Cell:
    """The lengths and the counted costs of an arm at a size, from its plan.

    Raises:
        InputError: The schedule is not WarmupStableDecay, or does not fit the lengths.
    """
    where = f"{study.path}, arm {arm}, size {size}"
    schedule = yaml.safe_load(plan.config)["model"]["scheduler"]
    if not schedule["class_path"].endswith(".WarmupStableDecay"):
        raise InputError(
            f"{where}: model.scheduler {schedule['class_path'].rpartition('.')[2]} is invalid for `scaling`, because "
            "runs of several lengths start from one run with a constant rate; use WarmupStableDecay"
        )
    if schedule["init_args"]["total_steps"] != plan.max_steps:
        raise InputError(
            f"{where}: model.scheduler.total_steps {schedule['init_args']['total_steps']} is not the length of the "
            "run, which is different for each run; use ${trainer.max_steps}"
        )
    parameters = plan.parameters - (plan.lookup_parameters if scaling.parameters == "without_embedding" else 0)
    flops = plan.flops if scaling.count == "counted" else 6 * parameters * plan.tokens
    lengths = scaling.steps or [max(1, round(budget / flops)) for budget in scaling.flops]
    starts = [decay_start(steps, schedule["init_args"]["decay_share"]) for steps in lengths]
    if starts[0] < schedule["init_args"]["warmup_steps"] or len(set(starts)) < len(starts):
        raise InputError(
            f"{where}: runs of {', '.join(map(str, lengths))} steps begin to decay at the steps "
            f"{', '.join(map(str, starts))}, but these must increase, and the first must not be before the end of the "
            f"warm-up ({schedule['init_args']['warmup_steps']}); use other lengths"
        )
    plan = plan._replace(arm=f"{arm}, {size}", max_steps=lengths[-1])
    return Cell(arm, size, options, plan, parameters, flops, lengths, starts)


def make_runs(study: Study, cells: list[Cell], seeds: int, folder: Path) -> list[Run]:
    """The runs seed by seed, short before long, so that a comparison that is stopped early has all cells."""
    runs = []
    for seed in range(seeds):
        for number in range(len(cells[0].lengths)):
            for cell in cells:
                home = folder / cell.arm / cell.size / f"seed_{seed}"
                steps = cell.lengths[number]
                constant = "--model.scheduler.init_args.decay_share=0"
                trunk = fit_arguments(study, cell.arm, cell.options, seed, home / TRUNK)
                fit = fit_arguments(study, cell.arm, cell.options, seed, home / f"steps_{steps}")
                job = Job(
                    f"{cell.name}, {steps} steps",
                    seed,
                    home / f"steps_{steps}",
                    [*fit, f"--trainer.max_steps={steps}"],
                    f"# {steps} steps\n{cell.plan.config}",
                    study.evaluate_options(),
                    steps,
                    Trunk(home / TRUNK, [*trunk, constant], tuple(cell.starts[: number + 1])),
                )
                runs.append(Run(cell, steps, job))
    return runs


def table_of(cells: list[Cell], seeds: int, parallel: int) -> Table:
    """The cost of each net: the time is that of all its runs at one seed."""
    table = Table(*COST, "time", title="plan")
    for cell in cells:
        seconds = cell.plan.seconds
        table.add_row(*cell.cost, "–" if seconds is None else clock(seconds * cell.trained_steps))
    table.caption = "Tokens and FLOPs are those of the longest run."
    if all(cell.plan.seconds is not None for cell in cells):
        total = seeds * sum(cell.plan.seconds * cell.trained_steps for cell in cells) / parallel
        table.caption += (
            f" {len(cells)} nets, {seeds} seeds, {parallel} at a time: about {clock(total)} of training on this "
            "machine, without start-up and evaluation."
        )
    return table
