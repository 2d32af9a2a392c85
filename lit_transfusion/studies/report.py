"""The report of a study: tables, curves, pictures, and CSV files."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont

from lit_transfusion import __version__
from lit_transfusion.generation.fonts import SIZE, font_for
from lit_transfusion.generation.pictures import wrap
from lit_transfusion.hardware import cpu_name
from lit_transfusion.run_folder import SAMPLES
from lit_transfusion.studies.curves import plot_curves
from lit_transfusion.studies.interval import Interval
from lit_transfusion.studies.plan import COST, ArmPlan, clock
from lit_transfusion.studies.results import (
    Finding,
    baselines_of,
    by_arm,
    decided,
    difference,
    skipped_of,
    write_findings,
    write_results,
)
from lit_transfusion.studies.runner import Job, Outcome
from lit_transfusion.studies.study import Study
from lit_transfusion.wording import counted

ARROWS = {"more": " ↑", "less": " ↓", "neither": ""}
SAMPLES_SECTION = [
    "## Samples",
    "The same prompts and noise for each arm, at its first seed that is finished.",
    "![Samples](samples.png)",
]
TILE, LABEL, GAP = 96, 150, 6  # pixels, in the sheet of samples


class Circumstances(NamedTuple):
    """How the study was run: what a reader needs to repeat it."""

    command: str
    commits: list[str]  # the commits of all starts
    hardware: str
    seconds: float  # total of all starts

    def __str__(self) -> str:
        return f"`{self.command}` at {', '.join(self.commits)}, on {self.hardware}, in {clock(self.seconds)}."


def circumstances(argv: Sequence[str], seconds: float = 0.0, commits: Sequence[str] = ()) -> Circumstances:
    """Collect how the study was run. `seconds` and `commits` are the contents of time.json, if it exists."""
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        hardware = f"{torch.multiprocessing.cpu_count()} CPU cores ({cpu_name()})"
    return Circumstances(
        f"lit-transfusion {shlex.join(argv)}", list(commits) or ["an unknown commit"], hardware, seconds
    )


def code_version() -> str:
    """The commit of the code that runs, or its version if it is not in a repository."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return f"version {__version__}"
    return f"commit {described.stdout.strip()}" if described.returncode == 0 else f"version {__version__}"


def write_report(
    study: Study, plans: Sequence[ArmPlan], outcomes: Sequence[Outcome], context: Circumstances, folder: Path
) -> Path:
    """Write report/README.md and its files from the runs that are finished; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [outcome.job for outcome in outcomes]
    write_results(jobs, folder / "results.csv")
    write_findings(study, jobs, folder / "findings.csv")
    plot_curves(jobs, plans, folder / "curves.png")
    pictures = samples(jobs, folder / "samples.png")
    failed = [outcome for outcome in outcomes if outcome.error]
    sections = [
        f"# {study.name}: {study.question}",
        str(context),
        f"{len(jobs) - len(failed)} of {len(jobs)} runs, mean ± standard deviation over seeds. All arms of a seed "
        "share the order of examples and the random numbers. ↑ more is better, ↓ less is better.",
        *(["## Findings", *findings(study, jobs)] if study.asked.claims else []),
        "## Results",
        results_table(study, jobs),
        *differences(study, jobs),
        "## Cost",
        markdown([COST, *(one.cost for one in plans)]),
        "## Curves",
        "Held-out losses by the number of positions trained on, and by the operations for them (the minimum that the "
        "arm needs, forward and backward): the mean over seeds, with their range. Documents and noise follow the "
        "recipe of the arm: where arms have different recipes, compare the table, which is measured on the same "
        "documents for all.",
        "![Losses by tokens and by FLOPs](curves.png)",
        *(SAMPLES_SECTION if pictures else []),
        *left_out(failed, skipped_of(jobs)),
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def findings(study: Study, jobs: Sequence[Job]) -> list[str]:
    """The summary of the findings, their table, and the meaning of its columns."""
    tested = decided(by_arm(jobs), study)
    head = ["finding", "measured by", "difference", "95 % interval", "each seed", "p", "Holm", "BH", "alone"]
    rows = [[*head, "holds here?"]]
    for one in tested:
        measure = f"{one.claim.column}, {one.claim.better} over {one.claim.worse}"
        numbers = ["–"] * 6
        if one.found is not None:
            each = ", ".join(f"{value:+.3g}" for value in one.found.per_seed)
            p_values = ["–" if p is None else f"{p:.2g}" for p in (one.found.p, one.holm, one.bh)]
            numbers = [f"{one.found.mean:+.3g}", span(one.found.interval), each, *p_values]
        rows.append([one.claim.says, measure, *numbers, one.alone, one.holds])
    return [summary(tested), markdown(rows), meaning(tested, baselines_of(jobs))]


def summary(found: Sequence[Finding]) -> str:
    """The number of findings that are resolved, with and without adjustment."""
    tested = sum(one.holm is not None for one in found)
    alone, holm, bh = (
        sum(verdict in ("yes", "no") for verdict in verdicts)
        for verdicts in zip(*((one.alone, one.holds, one.holds_bh) for one in found), strict=True)
    )
    at_floor = sum(one.at_floor for one in found)
    return (
        f"{counted(len(found), 'finding')}, {tested} tested: {alone} resolved alone, {holm} with Holm's adjustment for "
        f"the {tested} of this report, {bh} with Benjamini and Hochberg's; {at_floor} at the floor."
    )


def meaning(found: Sequence[Finding], baselines: dict[str, dict[str, float]]) -> str:
    """The meaning of the columns of the table, as Markdown."""
    tested = sum(one.holm is not None for one in found)
    lines = [
        "Differences are taken seed by seed, above zero where the finding holds; interval and p are those of the "
        "paired t test over seeds.",
        '- **alone**: the verdict if the finding were the only one. "yes" or "no" if the 95 % interval excludes zero, '
        'else "not resolved". Of twenty true differences of zero, one is resolved by chance.',
        f"- **holds here?**: the verdict with p adjusted by Holm's method for all {tested} tested findings of this "
        'report: "yes" or "no" if it is below 0.05. The chance of one or more false verdicts in the report is then at '
        "most 5 %.",
        "- **BH**: p adjusted by Benjamini and Hochberg's method for the same findings. Of the findings below 0.05, "
        "one in twenty is expected to be false.",
    ]
    columns = dict.fromkeys(one.claim.column for one in found)
    reached = {c: [f"{name} {numbers[c]:.3g}" for name, numbers in baselines.items() if c in numbers] for c in columns}
    if any(reached.values()):
        named = "; ".join(f"{column}: {', '.join(names)}" for column, names in reached.items() if names)
        lines.append(
            "- **at the floor**: the interval of neither arm is above what is reached without a model "
            f"({named}), so the difference gives no information about the arms."
        )
    pictures = {one.claim.column: one.found.num_pictures for one in found if one.found and one.found.num_pictures}
    if pictures:
        named = ", ".join(f"{column} ({number})" for column, number in pictures.items())
        lines.append(
            f"- **pictures**: for {named} the score of each prompt or picture is known, and interval and p include "
            "their sampling. All seeds use the same prompts or pictures, and others would give other scores, so the "
            "variance over them is added to the variance over seeds. In simulations, this interval contains the truth "
            "in 93 to 99 % of the cases; the interval over seeds alone contains it in 73 to 96 %."
        )
    return "\n".join([lines[0], "", *lines[1:]])


def differences(study: Study, jobs: Sequence[Job]) -> list[str]:
    """The differences of all other arms to the first, in the first column of each metric."""
    first, *others = study.arms
    results = by_arm(jobs)
    heads = [next(iter(metric.columns)) for metric in study.asked.metrics]
    rows = [["better by", *others]]
    for column in (head for head in heads if study.directions[head] != "neither"):
        found = [difference(results, study, column, arm, first) for arm in others]
        if any(found):
            rows.append([column, *("–" if one is None else f"{one.mean:+.3g} {span(one.interval)}" for one in found)])
    text = (
        f"How much better each arm is than {first}, seed by seed, with the 95 % interval without adjustment: of twenty "
        "intervals, one is expected to miss the truth. Above zero is better, for all measures."
    )
    return ["## Differences", text, markdown(rows)] if others and len(rows) > 1 else []


def span(interval: Interval | None, form: str = "+.3g") -> str:
    return "–" if interval is None else f"[{interval.low:{form}}, {interval.high:{form}}]"


def results_table(study: Study, jobs: Sequence[Job]) -> str:
    results = by_arm(jobs)
    measured = {column for runs in results.values() for run in runs.values() for column in run.columns}
    columns = [column for column in study.directions if column in measured]
    paper = list(dict.fromkeys(column for row in study.asked.paper.values() for column in row))
    head = ["arm", *(column + ARROWS[study.directions[column]] for column in columns), *(f"paper: {c}" for c in paper)]
    rows = [head]
    for arm, runs in results.items():
        ours = [spread([run.columns[column] for run in runs.values() if column in run.columns]) for column in columns]
        theirs = [f"{study.asked.paper.get(arm, {}).get(column, '–')}" for column in paper]
        rows.append([arm, *ours, *theirs])
    for name, reached in baselines_of(jobs).items():
        numbers = [f"{reached[column]:.4g}" if column in reached else "–" for column in columns]
        rows.append([f"no model: {name}", *numbers, *("–" for _ in paper)])
    table = "" if study.asked.table is None else f" (Table {study.asked.table})"
    # A table with many columns is transposed, so that it fits on a page.
    turned = [list(row) for row in zip(*rows, strict=True)] if len(head) > 2 + len(results) else rows
    note = (
        ""
        if not paper
        else (
            f"\n\nThe paper's numbers{table} are from other data and from models about a thousand times as large: "
            "compare only the order of the arms."
        )
    )
    return markdown(turned) + note


def spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{mean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def left_out(failed: Sequence[Outcome], skipped: dict[str, str]) -> list[str]:
    lines = [f"- {outcome.job.name}: {outcome.error}" for outcome in failed]
    lines += [f"- {name} was not measured: {reason}" for name, reason in skipped.items()]
    return ["## Left out", "\n".join(lines)] if lines else []


def markdown(rows: Sequence[Sequence[str]]) -> str:
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    head, *body = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def samples(jobs: Sequence[Job], path: Path) -> bool:
    """Draw a row of pictures for each arm below the prompts; return False if no arm drew pictures."""
    rows = {}
    for job in jobs:
        asked = job.evaluation.get("prompts", [])
        if asked and job.arm not in rows:  # the folder can also contain pictures from training
            rows[job.arm] = [job.folder / SAMPLES / f"{i}.png" for i in range(len(asked))]
            prompts = asked
    if not rows:
        return False
    font = ImageFont.load_default(SIZE)
    width = LABEL + max(map(len, rows.values())) * (TILE + GAP)
    head = 66
    sheet = Image.new("RGB", (width, head + len(rows) * (TILE + GAP)), (238, 238, 238))
    pen = ImageDraw.Draw(sheet)
    for i, prompt in enumerate(prompts):
        own = font_for(prompt)
        pen.multiline_text((LABEL + i * (TILE + GAP), 4), wrap(prompt, own, TILE), fill=(20, 20, 20), font=own)
    for number, (arm, files) in enumerate(rows.items()):
        y = head + number * (TILE + GAP)
        pen.multiline_text(
            (GAP, y + TILE // 3), wrap(arm.replace("_", " "), font, LABEL - GAP), fill=(20, 20, 20), font=font
        )
        for i, file in enumerate(files):
            picture = Image.open(file)
            resample = Image.Resampling.NEAREST if picture.width < TILE else Image.Resampling.BICUBIC
            sheet.paste(picture.resize((TILE, TILE), resample), (LABEL + i * (TILE + GAP), y))
    sheet.save(path)
    return True
