"""The results of a study: the numbers of each run, their spread over seeds, and which differences are significant.

The difference between two arms is the mean of the differences at each seed. Its interval and p value are those of the
paired t test (`scipy.stats.ttest_1samp`). For metrics that give a score of each picture or prompt, the interval also
includes the sampling of pictures: see `over_seeds_and_pictures`.
"""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch.utils.tensorboard import SummaryWriter

from lit_transfusion.studies.interval import LEVEL, SIGNIFICANCE, Interval
from lit_transfusion.studies.runner import Job
from lit_transfusion.studies.study import Claim, Study


class Measured(NamedTuple):
    """The numbers that `evaluate` measured for a run."""

    columns: dict[str, float]
    each: dict[str, list[float]]  # column → score of each picture or prompt, for columns that are their mean
    baselines: dict[str, dict[str, float]]  # baseline (such as noise) → column → number without a model


Results = dict[str, dict[int, Measured]]  # arm → seed → numbers


class Difference(NamedTuple):
    """The difference of two arms at each seed; positive if the first arm is better."""

    per_seed: list[float]
    mean: float
    interval: Interval | None = None  # None for one seed
    p: float | None = None  # of the hypothesis of no difference; None for one seed or a number that is not finite
    num_pictures: int = 0  # number of pictures whose sampling is in the interval; 0 if only the seeds are

    def verdict(self, p: float | None) -> str:
        """ "yes", "no" or "not resolved", by a p value: the p value of the difference, or an adjusted one."""
        if p is None or p >= SIGNIFICANCE:
            return "not resolved"
        return "yes" if self.mean > 0 else "no"


class Finding(NamedTuple):
    """A claim and its test."""

    claim: Claim
    found: Difference | None  # None: not measured
    holm: float | None = None  # p value adjusted by Holm's method for all findings of the study
    bh: float | None = None  # p value adjusted by Benjamini and Hochberg's method
    at_floor: bool = False  # neither arm is above the baselines without a model

    @property
    def alone(self) -> str:
        """The verdict if this were the only finding."""
        return self._verdict(self.found and self.found.p)

    @property
    def holds(self) -> str:
        """The verdict with Holm's adjustment."""
        return self._verdict(self.holm)

    @property
    def holds_bh(self) -> str:
        """The verdict with Benjamini and Hochberg's adjustment."""
        return self._verdict(self.bh)

    def _verdict(self, p: float | None) -> str:
        if self.found is None:
            return "not measured"
        return "at the floor" if self.at_floor else self.found.verdict(p)


def measured_of(job: Job) -> Measured:
    """The numbers of a run; empty if it was not evaluated."""
    evaluation = job.evaluation
    columns = next(iter(evaluation.get("metrics", {}).values()), {})
    return Measured(columns, evaluation.get("each", {}), evaluation.get("baselines", {}))


def skipped_of(jobs: Sequence[Job]) -> dict[str, str]:
    """Metric, with its arms if only some lack it → the reason why it was not measured."""
    arms = list(dict.fromkeys(job.arm for job in jobs if job.evaluated))
    lacking: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        for found in job.evaluation.get("skipped", {}).items():
            lacking.setdefault(found, []).append(job.arm)
    return {
        name if set(of) == set(arms) else f"{name} of {', '.join(dict.fromkeys(of))}": reason
        for (name, reason), of in lacking.items()
    }


def baselines_of(jobs: Sequence[Job]) -> dict[str, dict[str, float]]:
    """Numbers without a model: baseline → column → number. They are the same for all runs."""
    return next(filter(None, (job.evaluation.get("baselines") for job in jobs)), {})


def by_arm(jobs: Sequence[Job]) -> Results:
    """The results of the runs that are finished."""
    results: Results = {job.arm: {} for job in jobs}
    for job in jobs:
        if (measured := measured_of(job)).columns:
            results[job.arm][job.seed] = measured
    return results


def difference(results: Results, study: Study, column: str, better: str, worse: str) -> Difference | None:
    """How much the first arm is better; None if no seed has both arms."""
    seeds = [seed for seed in results[better] if seed in results[worse]]
    pairs = [(results[better][seed], results[worse][seed]) for seed in seeds]
    return compare(pairs, column, study.directions[column])


def above_floor(results: Results, study: Study, column: str, arm: str) -> Difference | None:
    """How much an arm is better than the best baseline of a column; None if the column has no baseline."""
    direction = study.directions[column]
    pairs = []
    for run in results[arm].values():
        reached = [columns[column] for columns in run.baselines.values() if column in columns]
        if reached:
            floor = min(reached) if direction == "less" else max(reached)
            pairs.append((run, Measured({column: floor}, {column: [floor] * len(run.each.get(column, []))}, {})))
    return compare(pairs, column, direction)


def compare(pairs: Sequence[tuple[Measured, Measured]], column: str, direction: str) -> Difference | None:
    """The difference in a column, over the pairs in which both have it; None if there is no such pair."""
    sign = -1 if direction == "less" else 1
    pairs = [(a, b) for a, b in pairs if column in a.columns and column in b.columns]
    if not pairs:
        return None
    per_seed = [sign * (a.columns[column] - b.columns[column]) for a, b in pairs]
    found = Difference(per_seed, float(np.mean(per_seed)))
    if len(per_seed) == 1 or not np.isfinite(per_seed).all():
        return found
    each = [[run.each.get(column, []) for run in pair] for pair in pairs]
    sizes = {len(scores) for both in each for scores in both}
    if len(sizes) == 1 and min(sizes) > 1:
        scores = np.array(each, dtype=float)  # (seeds, 2, pictures)
        interval, p = over_seeds_and_pictures(per_seed, sign * (scores[:, 0] - scores[:, 1]))
        return found._replace(interval=interval, p=p, num_pictures=scores.shape[2])
    interval, p = over_seeds(per_seed)
    return found._replace(interval=interval, p=p)


def over_seeds(values: Sequence[float]) -> tuple[Interval, float]:
    """The t interval of the mean difference over seeds, and the p value of the paired t test."""
    if len(set(values)) == 1:  # SciPy gives no p value for equal values
        return Interval(values[0], values[0]), float(values[0] == 0)
    test = stats.ttest_1samp(values, 0)
    return Interval(*map(float, test.confidence_interval(LEVEL))), float(test.pvalue)


def over_seeds_and_pictures(values: Sequence[float], scores: np.ndarray) -> tuple[Interval, float]:
    """The interval and p value over seeds and pictures, if the difference of each picture is known.

    All seeds and arms use the same prompts, so more seeds do not average out the choice of the prompts. The variance of
    the mean is therefore the variance over seeds, divided by the number of seeds, plus the variance over pictures (of
    their means over seeds), divided by the number of pictures. The degrees of freedom are Welch and Satterthwaite's. In
    simulated studies with 96 prompts, this interval contains the truth in 93 to 99 % of the cases; the interval over
    seeds alone contains it in 73 to 96 %.

    Args:
        values: The difference at each seed.
        scores: (seeds, pictures), the difference of each picture or prompt at each seed.
    """
    num_seeds, num_pictures = scores.shape
    of_seeds = np.var(values, ddof=1) / num_seeds
    of_pictures = np.var(scores.mean(0), ddof=1) / num_pictures
    middle, variance = float(np.mean(values)), float(of_seeds + of_pictures)
    if variance == 0:
        return Interval(middle, middle), float(middle == 0)
    freedom = variance**2 / (of_seeds**2 / (num_seeds - 1) + of_pictures**2 / (num_pictures - 1))
    low, high = stats.t.interval(LEVEL, freedom, middle, math.sqrt(variance))
    return Interval(float(low), float(high)), float(2 * stats.t.sf(abs(middle) / math.sqrt(variance), freedom))


def adjusted_by_holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted by Holm's method (1979): the chance of any false finding below 0.05 is at most 5 %."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values, dtype=float)[order]))
    return adjusted.tolist()


def adjusted_by_bh(p_values: Sequence[float]) -> list[float]:
    """P values adjusted by Benjamini and Hochberg's method (1995): 5 % of the findings below 0.05 are false."""
    return stats.false_discovery_control(p_values).tolist() if len(p_values) else []


def decided(results: Results, study: Study) -> list[Finding]:
    """Test each claim. P values are adjusted for all claims that have one."""
    findings = []
    for claim in study.asked.claims:
        found = difference(results, study, claim.column, claim.better, claim.worse)
        findings.append(Finding(claim, found, at_floor=is_at_floor(results, study, claim)))
    tested = [i for i, finding in enumerate(findings) if finding.found is not None and finding.found.p is not None]
    p_values = [findings[i].found.p for i in tested]
    for i, holm, bh in zip(tested, adjusted_by_holm(p_values), adjusted_by_bh(p_values), strict=True):
        findings[i] = findings[i]._replace(holm=holm, bh=bh)
    return findings


def is_at_floor(results: Results, study: Study, claim: Claim) -> bool:
    """True if the interval of neither arm is above the baselines. False without baselines, or with one seed."""
    found = [above_floor(results, study, claim.column, arm) for arm in (claim.better, claim.worse)]
    return all(one is not None and one.interval is not None and one.interval.low <= 0 for one in found)


def write_findings(study: Study, jobs: Sequence[Job], path: Path) -> None:
    """Write a CSV file with one line for each claim that was measured."""
    numbers = ["difference", "low", "high", "p", "holm", "bh", "num_pictures"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["finding", "column", "better", "worse", *numbers, "at_floor", "alone", "holds"])
        for finding in decided(by_arm(jobs), study):
            claim, found = finding.claim, finding.found
            if found is not None:
                low, high = found.interval or (None, None)
                named = [claim.says, claim.column, claim.better, claim.worse]
                counted = [found.mean, low, high, found.p, finding.holm, finding.bh, found.num_pictures]
                writer.writerow([*named, *counted, finding.at_floor, finding.alone, finding.holds])


def write_results(jobs: Sequence[Job], path: Path) -> None:
    """Write a CSV file with one line for each run."""
    results = [(job, measured_of(job).columns) for job in jobs]
    columns = list(dict.fromkeys(column for _, measured in results for column in measured))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", *columns])
        for job, measured in results:
            writer.writerow([job.arm, job.seed, *(measured.get(column, "") for column in columns)])


def write_tensorboard(job: Job, changes: dict) -> None:
    """Write the settings and results of a run for TensorBoard's hparams tab."""
    settings = {"arm": job.arm, "seed": job.seed}
    for key, value in flat(changes).items():
        settings[key] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    with SummaryWriter(str(job.folder)) as writer:
        numbers = {f"evaluation/{column}": number for column, number in measured_of(job).columns.items()}
        writer.add_hparams(settings, numbers, run_name=".")


def flat(tree: dict, prefix: str = "") -> dict:
    """Nested keys joined by dots."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
