"""The cost of each arm of a study, computed before training."""

import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import ArgumentError
from rich.table import Table

from lit_transfusion.config.lightning import TransfusionCLI, parts_of
from lit_transfusion.config.messages import one_line
from lit_transfusion.data.types import PackedBatch
from lit_transfusion.errors import InputError
from lit_transfusion.model.flops import Flops
from lit_transfusion.studies.study import Study
from lit_transfusion.training.batch_flops import batch_flops
from lit_transfusion.training.lit_module import LitTransfusion
from lit_transfusion.wording import counted

BATCHES = 8  # number of batches over which tokens and operations are averaged
TIMED_STEPS = 3
COST = ["arm", "parameters", "of them patcher", "steps", "tokens", "FLOPs"]
MOST_TIMED = 1e11  # operations per step; longer steps (seconds) are not timed on a CPU


class ArmPlan(NamedTuple):
    """The cost of one arm. Tokens and operations are per optimiser step of one process, without padding."""

    arm: str
    config: str  # YAML of the whole run, at seed 0
    parameters: int
    patcher_parameters: int
    max_steps: int
    tokens: float
    flops: float
    seconds: float | None  # of a step on this machine; None if not measured
    lookup_parameters: int = 0  # of the embedding of tokens, unless it is also the head
    images_are_tokens: bool = False

    @property
    def cost(self) -> list[str]:
        """The cost of the whole run, formatted: the cells of the columns COST."""
        return [
            self.arm,
            f"{self.parameters / 1e6:.2f}M",
            f"{self.patcher_parameters / 1e6:.2f}M",
            f"{self.max_steps:,}",
            f"{self.tokens * self.max_steps / 1e6:.2f}M",
            f"{self.flops * self.max_steps:.2e}",
        ]


def plan(study: Study, overrides: list[str], timed: bool) -> list[ArmPlan]:
    """Build each arm, read some of its batches, and run a few steps if `timed`.

    Raises:
        InputError: An arm is invalid, or two arms have the same config.
    """
    plans = [plan_arm(study, arm, overrides, timed) for arm in study.arms]
    check_different(study, plans)
    return plans


def check_different(study: Study, plans: Sequence[ArmPlan]) -> None:
    """Raise InputError if two arms have the same config."""
    configs: dict[str, str] = {}
    for one in plans:
        same = configs.setdefault(one.config, one.arm)
        if same != one.arm:
            raise InputError(f"{study.path}: the arms {same} and {one.arm} have the same config; change or remove one")


def fit_arguments(study: Study, arm: str, overrides: list[str], seed: int, folder: Path) -> list[str]:
    """The arguments of `fit` for one run.

    The seed sets the weights, the order of examples and the noise, and overwrites the seeds in the files. So all arms
    of a seed share order and noise, and two seeds differ in both.
    """
    seeds = [word for key in ("seed_everything", "data.seed", "model.seed") for word in (f"--{key}", str(seed))]
    where = ["--trainer.default_root_dir", str(folder)]
    return ["--arm", arm, "--config", str(study.path), *overrides, *seeds, *where]


def plan_arm(study: Study, arm: str, overrides: list[str], timed: bool) -> ArmPlan:
    try:
        parts = parts_of(fit_arguments(study, arm, overrides, 0, Path("FOLDER")))
        parts.model.noise.check_sampler(study.asked.sampler, study.asked.num_inference_steps)
    except (ArgumentError, InputError) as error:
        raise InputError(f"{study.path}, arm {arm}: {one_line(error)}") from None
    trainer, model = parts.config.trainer, parts.model
    if trainer.max_steps < 1:
        raise InputError(
            f"{study.path}, arm {arm}: trainer.max_steps {trainer.max_steps} is less than 1; set the number of steps"
        )
    loader = parts.datamodule.train_dataloader()
    batches = list(islice(loader, BATCHES))
    accumulated = trainer.accumulate_grad_batches
    of_parts = Flops.count(model.net)
    flops = statistics.mean(float(batch_flops(of_parts, model.net.mask, batch, model.codec)) for batch in batches)
    seconds = None
    if timed and (flops < MOST_TIMED or torch.cuda.is_available()):
        seconds = time_step(model, batches[0]) * accumulated
    return ArmPlan(
        arm,
        config_text(parts),
        sum(p.numel() for p in model.net.parameters()),
        sum(p.numel() for p in model.net.patcher.parameters()),
        trainer.max_steps,
        accumulated * statistics.mean(int(batch.lengths.sum()) for batch in batches),
        accumulated * flops,
        seconds,
        0 if model.net.head.weight is model.net.embedding.weight else model.net.embedding.weight.numel(),
        model.noise.images_are_tokens,
    )


def config_text(parts: TransfusionCLI) -> str:
    """The run as YAML without the name of its arm, so that equal arms have equal texts."""
    config = parts.config.clone()
    config.pop("config", None)
    config.pop("arm", None)
    return parts.parser.dump(config, skip_link_targets=True)


def time_step(model: LitTransfusion, batch: PackedBatch) -> float:
    """Seconds of a forward and backward pass: the median of a few, after one warm-up pass."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    batch = batch.to(device)
    times = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        terms, _ = model.losses(model.net, batch, torch.Generator(device).manual_seed(0))
        terms.total.backward()
        terms.total.item()  # waits for a GPU
        times.append(time.perf_counter() - start)
        model.zero_grad()
    return statistics.median(times[1:])


def table_of(plans: list[ArmPlan], seeds: int, parallel: int) -> Table:
    table = Table(*COST, "time", title="plan")
    for one in plans:
        table.add_row(*one.cost, "–" if one.seconds is None else clock(one.seconds * one.max_steps))
    if all(one.seconds is not None for one in plans):
        total = seeds * sum(one.seconds * one.max_steps for one in plans) / parallel
        table.caption = (
            f"{counted(len(plans), 'arm')} x {counted(seeds, 'seed')}, {parallel} at a time: about {clock(total)} of "
            "training on this machine, without start-up, validation and evaluation"
        )
    return table


def clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
