"""Read the YAML file of a study: its arms, its metrics, its claims and the numbers of the paper.

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

from lit_transfusion.config.compose import read_config
from lit_transfusion.config.messages import one_line, raising_own_errors
from lit_transfusion.config.registry import PARTS, import_all
from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.evaluation.metric import Metric
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.text_reader import read_text, split_lines

import_all(PARTS)  # so that a study can name metrics by their short names


@dataclass(frozen=True)
class Claim:
    """A claim that the study tests: one arm is better than another.

    Args:
        says: The claim in words, with the paper's numbers.
        column: The column of a metric that decides it.
        better: The arm that should be better.
        worse: The arm that it is compared with.
    """

    says: str
    column: str
    better: str
    worse: str


@dataclass(frozen=True)
class Scaling:
    """The `study.scaling` section, which the command `scaling` reads: each arm is trained at each size and length.

    Args:
        sizes: Name → what differs from the config, such as {model: {size: {dim: 64}}}, from small to large.
        steps: Lengths of the runs in steps, increasing. Use either `steps` or `flops`.
        flops: Lengths of the runs in floating-point operations, increasing; the steps follow at each size.
        columns: The columns that are fitted.
        baseline: The arm whose numbers the challenger should reach.
        challenger: The arm whose operations are compared with those of the baseline; null: no comparison.
        parameters: What N counts: all parameters, or all but the embedding of tokens, which needs no operations.
        count: How operations are counted: the minimum that the net needs, or 6 N D (paper, footnote 15).
        paper: Column → the paper's parity FLOP ratio, shown next to ours.
    """

    sizes: dict[str, dict[str, Any]]
    columns: list[str]
    steps: list[int] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    baseline: str | None = None
    challenger: str | None = None
    parameters: Literal["total", "without_embedding"] = "total"
    count: Literal["counted", "6ND"] = "counted"
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Questions:
    """The `study` section.

    Args:
        table: Number of the table in the paper that the study repeats; null if there is none.
        metrics: The metrics that are measured for each arm.
        num_examples: Number of held-out examples, at least 2.
        guidance_scale: Weight of the prompt in classifier-free guidance (paper, 4.3: 3).
        num_inference_steps: Number of denoising steps.
        sampler: One of the noise process (DDPM: ddim, ddpm, dpm++; FlowMatching: euler, heun); null: the first.
        claims: The claims to test.
        paper: Arm → column → the paper's number, shown next to ours. Its data and model sizes are different, so only
            the order of the arms can be compared.
        scaling: Sizes and lengths for the command `scaling`; null if the study has none.
    """

    metrics: list[Metric]
    table: int | None = None
    num_examples: int = 200
    guidance_scale: float = 3.0
    num_inference_steps: int = 25
    sampler: str | None = None
    claims: list[Claim] = field(default_factory=list)
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    scaling: Scaling | None = None


@dataclass(frozen=True)
class Study:
    """A study from a YAML file.

    Args:
        path: The YAML file.
        question: The first comment of the file.
        arms: Names of the arms, in the order of the file.
        asked: The `study` section.
        section: The `study` section as plain data, for `evaluate`.
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
        """Column → "more", "less" or "neither": what is better."""
        return {column: better for metric in self.asked.metrics for column, better in metric.columns.items()}

    def only(self, arms: list[str] | None) -> "Study":
        """The same study with only these arms, and the claims and paper numbers about them."""
        if arms is None:
            return self
        if not arms:
            raise InputError("--arms is empty; name at least one arm, or leave the option out")
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
    """Read the study in a YAML file.

    Raises:
        InputError: The file does not exist, has no arms or no `study` section, or its `study` section is invalid.
    """
    path = Path(path)
    _, arms, section = read_config(path)
    if not arms:
        raise InputError(f"{path} is not a study, because it has no `arms`; add `arms: {{NAME: {{KEY: VALUE}}}}`")
    if not section:
        raise InputError(f"{path} has no `study` section; add one with the metrics: `study: {{metrics: [...]}}`")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Questions, "study")
    try:
        with raising_own_errors():
            asked = parser.instantiate(parser.parse_object({"study": section})).study
        Sampling(asked.sampler, asked.num_inference_steps, asked.guidance_scale)
    except (ArgumentError, InputError) as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    if not asked.metrics:
        raise InputError(f"{path}: study.metrics is empty; name at least one metric")
    check_at_least(f"{path}: study.num_examples", asked.num_examples, 2)
    for kind, names in (("arm", arms), ("size", asked.scaling.sizes if asked.scaling else ())):
        for name in names:
            if Path(name).name != name or name in ("report", "cluster"):
                raise InputError(f"{path}: the {kind} {name!r} cannot be the name of a folder; rename it")
    study = Study(path, first_comment(path), list(arms), asked, section)
    check_claims(study)
    if asked.scaling is not None:
        check_scaling(study, asked.scaling)
    return study


def check_claims(study: Study) -> None:
    """Check the names of arms and columns in the claims, before hours of training."""
    for claim in study.asked.claims:
        if claim.column not in study.directions:
            known = ", ".join(study.directions)
            raise InputError(f"{study.path}: a claim names the unknown column {claim.column!r}; known: {known}")
        if study.directions[claim.column] not in ("more", "less"):
            raise InputError(
                f"{study.path}: a claim names the column {claim.column!r}, which has no better direction; use another"
            )
    named = [*study.asked.paper, *(arm for claim in study.asked.claims for arm in (claim.better, claim.worse))]
    for arm in named:
        if arm not in study.arms:
            raise InputError(f"{study.path}: study names the unknown arm {arm!r}; known: {', '.join(study.arms)}")


def check_scaling(study: Study, scaling: Scaling) -> None:
    """Check the lengths, columns and arms of the `scaling` section, before hours of training."""
    where = f"{study.path}: study.scaling"
    if not scaling.sizes:
        raise InputError(f"{where}.sizes is empty; name at least one size")
    if bool(scaling.steps) == bool(scaling.flops):
        raise InputError(f"{where} needs either `steps` or `flops`, the lengths of the runs")
    key = "steps" if scaling.steps else "flops"
    lengths = getattr(scaling, key)
    if any(length <= 0 for length in lengths) or sorted(set(lengths)) != lengths:
        raise InputError(f"{where}.{key} {lengths} is invalid; use increasing numbers above 0")
    for column in [*scaling.columns, *scaling.paper]:
        if study.directions.get(column) not in ("more", "less"):
            known = ", ".join(column for column, better in study.directions.items() if better != "neither")
            raise InputError(f"{where} names the column {column!r}, which no metric has; known: {known}")
    for arm in filter(None, (scaling.baseline, scaling.challenger)):
        if arm not in study.arms:
            raise InputError(f"{where} names the unknown arm {arm!r}; known: {', '.join(study.arms)}")
    if (scaling.baseline is None) != (scaling.challenger is None):
        raise InputError(f"{where} needs both `baseline` and `challenger`, or neither")


def first_comment(path: Path) -> str:
    """The comment at the start of the file, up to its first empty line, joined to one line."""
    lines = []
    for line in split_lines(read_text(path)):
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        lines.append(text)
    return " ".join(lines)
