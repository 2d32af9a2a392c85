"""What came of a study: the numbers of each run, their spread over seeds, and which differences are real."""

import csv
import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import t as student
from torch.utils.tensorboard import SummaryWriter

from lit_transfusion.studies.runner import Job, read_json
from lit_transfusion.studies.study import Claim, Study

Results = dict[str, dict[int, dict[str, float]]]  # arm → seed → column → number


class Curve(NamedTuple):
    """Held-out losses of a run as it learned."""

    steps: list[int]
    text: list[float]
    image: list[float]


class Interval(NamedTuple):
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Difference(NamedTuple):
    """Of two arms, seed by seed, in the direction that counts as better."""

    per_seed: list[float]
    mean: float
    bootstrap: Interval | None  # over seeds; None for one seed
    student: Interval | None  # the interval of a paired t-test

    @property
    def verdict(self) -> str:
        """By the t interval, the wider one: at three seeds a bootstrap can say no more than what lies between the
        least and the greatest of three differences, which misses the truth one time in four."""
        if self.student is None or not self.student.excludes_zero:
            return "not resolved"
        return "yes" if self.mean > 0 else "no"


def columns_of(job: Job) -> dict[str, float]:
    """What was measured of a run; nothing if it was not."""
    measured = read_json(job.folder / "evaluation.json").get("metrics", {}) if job.evaluated else {}
    return next(iter(measured.values()), {})


def skipped_of(jobs: Sequence[Job]) -> dict[str, str]:
    """Metric → why it could not be measured."""
    return {
        name: reason
        for job in jobs
        if job.evaluated
        for name, reason in read_json(job.folder / "evaluation.json").get("skipped", {}).items()
    }


def baselines_of(jobs: Sequence[Job]) -> dict[str, dict[str, float]]:
    """What is reached without a model: baseline → column → number, the same for all runs."""
    measured = [read_json(job.folder / "evaluation.json").get("baselines", {}) for job in jobs if job.evaluated]
    return next(filter(None, measured), {})


def by_arm(jobs: Sequence[Job]) -> Results:
    """Of the runs that are finished."""
    results: Results = {job.arm: {} for job in jobs}
    for job in jobs:
        if columns := columns_of(job):
            results[job.arm][job.seed] = columns
    return results


def difference(results: Results, study: Study, column: str, better: str, worse: str) -> Difference | None:
    """How much the first arm does better; None where no seed has both."""
    sign = -1 if study.directions[column] == "less" else 1
    seeds = [
        seed for seed in results[better] if column in results[better][seed] and column in results[worse].get(seed, {})
    ]
    if not seeds:
        return None
    per_seed = [sign * (results[better][seed][column] - results[worse][seed][column]) for seed in seeds]
    if len(per_seed) == 1:
        return Difference(per_seed, per_seed[0], None, None)
    return Difference(per_seed, mean(per_seed), bootstrap(per_seed), student_interval(per_seed))


def bootstrap(values: Sequence[float], level: float = 0.95, most: int = 10_000) -> Interval:
    """Percentile interval of the mean over resamples of the values: over all of them where they are few."""
    n = len(values)
    if n**n <= most:
        means = sorted(mean(resample) for resample in product(values, repeat=n))
    else:
        random = Random(0)
        means = sorted(mean(random.choices(values, k=n)) for _ in range(most))
    cut = (1 - level) / 2 * len(means)
    return Interval(means[math.floor(cut)], means[len(means) - 1 - math.floor(cut)])


def student_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Interval of the mean if the values are normally distributed."""
    half = student.ppf((1 + level) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values) - half, mean(values) + half)


def decided(results: Results, study: Study) -> list[tuple[Claim, Difference | None]]:
    return [
        (claim, difference(results, study, claim.column, claim.better, claim.worse)) for claim in study.asked.claims
    ]


def curve_of(job: Job) -> Curve:
    """Read from the metrics files of all starts; where two overlap, the later is right."""
    points: dict[int, tuple[float, float]] = {}
    for path in sorted(job.folder.glob("metrics/version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:])):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("val/loss_image") and row.get("val/loss_text"):
                    points[int(row["step"]) + 1] = float(row["val/loss_text"]), float(row["val/loss_image"])
    steps = sorted(points)
    return Curve(steps, [points[step][0] for step in steps], [points[step][1] for step in steps])


def write_findings(study: Study, jobs: Sequence[Job], path: Path) -> None:
    """One line for each claim that could be measured."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["finding", "column", "better", "worse", "difference", "low", "high", "verdict"])
        for claim, found in decided(by_arm(jobs), study):
            if found is not None:
                low, high = found.student or ("", "")
                named = [claim.says, claim.column, claim.better, claim.worse]
                writer.writerow([*named, found.mean, low, high, found.verdict])


def write_results(jobs: Sequence[Job], path: Path) -> None:
    """One line for each run."""
    results = [(job, columns_of(job)) for job in jobs]
    columns = list(dict.fromkeys(column for _, measured in results for column in measured))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", *columns])
        for job, measured in results:
            writer.writerow([job.arm, job.seed, *(measured.get(column, "") for column in columns)])


def write_tensorboard(job: Job, changes: dict) -> None:
    """The arm's settings and results beside its curves, for TensorBoard's hparams tab."""
    settings = {"arm": job.arm, "seed": job.seed}
    for key, value in flat(changes).items():
        settings[key] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    with SummaryWriter(str(job.folder)) as writer:
        numbers = {f"evaluation/{column}": number for column, number in columns_of(job).items()}
        writer.add_hparams(settings, numbers, run_name=".")


def flat(tree: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
