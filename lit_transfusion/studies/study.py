"""A study, as its YAML file tells it: the arms, what is measured of them, and what the paper found.

study:
  table: 5
  metrics: [Perplexity, GenEvalShapes]
  claims:
    - {says: "…", column: geneval, better: bidirectional, worse: causal}
  paper:
    causal: {FID: 61.3}
arms:
  causal: {model: {mask: Causal}}
  bidirectional: {model: {mask: Bidirectional}}
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lit_transfusion.config.compose import collect, study_section
from lit_transfusion.config.messages import one_line, raising_own_errors
from lit_transfusion.config.registry import PARTS, import_all
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Metric
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.text_reader import read_text, split_lines

import_all(PARTS)  # so that a study can name metrics by their short names


@dataclass(frozen=True)
class Claim:
    """A finding that the study tests: one arm does better than another.

    Args:
        says: The finding, in words, with the paper's numbers.
        column: Column of a metric that decides it.
        better: The arm that should do better.
        worse: The arm that it is held against.
    """

    says: str
    column: str
    better: str
    worse: str


@dataclass(frozen=True)
class Questions:
    """The `study` section.

    Args:
        table: Table of the paper that the study repeats; null if it has none.
        metrics: What is measured of each arm.
        num_examples: Held-out examples.
        guidance_scale: Weight of the prompt (paper, 4.3: 3).
        num_inference_steps: Denoising steps.
        sampler: ddpm, ddim or dpm++.
        claims: What is to be decided.
        paper: Arm → column → the paper's number, to be shown beside ours. Its data and size are others, so only the
            order of the arms can be compared.
    """

    metrics: list[Metric]
    table: int | None = None
    num_examples: int = 200
    guidance_scale: float = 3.0
    num_inference_steps: int = 25
    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    claims: list[Claim] = field(default_factory=list)
    paper: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study that was read.

    Args:
        path: The YAML file.
        question: Its first comment.
        arms: Their names, in order.
        asked: What is asked of them.
        section: The `study` section as plain data, its metrics with the full paths of their classes: for `evaluate`.
    """

    path: Path
    question: str
    arms: list[str]
    asked: Questions
    section: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def directions(self) -> dict[str, str]:
        """Column → whether more or less of it is better."""
        return {column: better for metric in self.asked.metrics for column, better in metric.columns.items()}

    def only(self, arms: list[str] | None) -> "Study":
        """The same study with fewer arms, and with what can be asked of them."""
        if arms is None:
            return self
        if not arms:
            raise InputError("--arms names no arm")
        unknown = [arm for arm in arms if arm not in self.arms]
        if unknown:
            raise InputError(f"{self.path} has no arm {unknown[0]!r}; it has {', '.join(self.arms)}")
        claims = [claim for claim in self.asked.claims if {claim.better, claim.worse} <= set(arms)]
        paper = {arm: row for arm, row in self.asked.paper.items() if arm in arms}
        asked = replace(self.asked, claims=claims, paper=paper)
        return replace(self, arms=[arm for arm in self.arms if arm in arms], asked=asked)

    def evaluate_options(self) -> str:
        """YAML for `evaluate --config`."""
        keys = ("metrics", "num_examples", "num_inference_steps", "sampler")
        options = {key: self.section[key] for key in keys if key in self.section}
        return yaml.safe_dump({**options, "guidance_scale": [self.asked.guidance_scale]}, sort_keys=False)


def read_study(path: str | Path) -> Study:
    """The study that a YAML file holds.

    Raises:
        InputError: There is no such file, it has no arms or no `study` section, or one that names what there is not.
    """
    path = Path(path)
    _, arms = collect(path)
    section = study_section(path)
    if not arms:
        raise InputError(f"{path} is not a study: it has no `arms`")
    if not section:
        raise InputError(f"{path} has no `study` section, which says what to measure of the arms (`metrics: [...]`)")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Questions, "study")
    try:
        with raising_own_errors():
            asked = parser.instantiate(parser.parse_object({"study": section})).study
        Sampling(asked.sampler, asked.num_inference_steps, asked.guidance_scale)
    except (ArgumentError, InputError) as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    if not asked.metrics:
        raise InputError(f"{path}: study.metrics names no metric")
    if asked.num_examples < 2:
        raise InputError(f"{path}: study.num_examples {asked.num_examples} is less than 2")
    for arm in arms:
        if Path(arm).name != arm or arm in ("report", "cluster"):
            raise InputError(f"{path}: the arm {arm!r} cannot have a folder of this name beside report/; rename it")
    study = Study(path, first_comment(path), list(arms), asked, section)
    check_claims(study)
    return study


def check_claims(study: Study) -> None:
    """Names of arms and columns that do not exist would only be noticed after hours."""
    for claim in study.asked.claims:
        if claim.column not in study.directions:
            known = ", ".join(study.directions)
            raise InputError(f"{study.path}: a claim names the column {claim.column!r}; the metrics give {known}")
        if study.directions[claim.column] not in ("more", "less"):
            raise InputError(f"{study.path}: of the column {claim.column!r} neither more nor less is better")
    named = [*study.asked.paper, *(arm for claim in study.asked.claims for arm in (claim.better, claim.worse))]
    for arm in named:
        if arm not in study.arms:
            raise InputError(f"{study.path}: study names the arm {arm!r}; there are {', '.join(study.arms)}")


def first_comment(path: Path) -> str:
    """The lines of the comment that the file begins with, up to its first empty one."""
    lines = []
    for line in split_lines(read_text(path)):
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        lines.append(text)
    return " ".join(lines)
