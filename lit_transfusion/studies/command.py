"""The `ablate` command: train and evaluate all arms of a study, and write its report."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from lit_transfusion.config.compose import read_config
from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.run_folder import read_json

if TYPE_CHECKING:
    from lit_transfusion.studies.runner import Job, Outcome


def ablate(
    config: str,
    seeds: int = 3,
    parallel: int = 1,
    dry_run: bool = False,
    arms: list[str] | None = None,
    output: str | None = None,
    override: list[str] | None = None,
    cluster: Literal["slurm", "local"] | None = None,
    cluster_options: dict[str, Any] = {},  # noqa: B006 (never changed)
) -> None:
    """Train all arms of a study at several seeds, evaluate them, and write the table, the curves and the samples.

    The same command resumes a study that was stopped. A run that fails does not stop the others.

    Args:
        config: YAML file with `arms` and a `study` section, such as configs/ablate_mask.yaml.
        seeds: Number of seeds. Each arm is trained with the seeds 0, 1, ….
        parallel: Number of runs at the same time. They share the cores, and the GPUs if there are enough.
        dry_run: Only print the plan: arms, parameters, tokens, FLOPs, expected time.
        arms: Only these arms; null for all.
        output: Directory of the runs and of report/ (with --arms: report_of_ARMS/). Null is runs/NAME of the file.
        override: Options of `fit` for all arms, such as --override=--trainer.max_steps=100.
        cluster: Run on a cluster: slurm, or local to test this on one machine.
        cluster_options: Options of submitit's executor: {slurm_partition: …, gpus_per_node: 8, timeout_min: 1440}.
    """
    # Imports are here, since they take seconds, and --help is quick.
    from lit_transfusion.studies.cluster import executor
    from lit_transfusion.studies.plan import plan, table_of
    from lit_transfusion.studies.runner import make_jobs
    from lit_transfusion.studies.study import read_study

    try:
        from lit_transfusion.studies.report import circumstances, write_report
        from lit_transfusion.studies.results import write_tensorboard
    except ImportError as error:
        raise InputError(f'ablate needs {error.name}: pip install -e ".[evaluation]"') from None

    check_at_least("--seeds", seeds)
    check_at_least("--parallel", parallel)
    study = read_study(config).only(arms)
    folder = Path(output or f"runs/{study.name}")
    submit = None
    if cluster is not None and not dry_run:
        submit = executor(cluster, folder / "cluster", cluster_options)
    console = Console(stderr=True)
    with console.status("planning the arms"):
        plans = plan(study, override or [], timed=dry_run)
    console.print(table_of(plans, seeds, parallel))
    if dry_run:
        return
    jobs = make_jobs(study, plans, override or [], seeds, folder)

    finished = {job.folder for job in jobs if job.evaluated}
    outcomes = run_all(jobs, parallel, submit, folder)
    changes = read_config(study.path).arms
    for outcome in outcomes:
        if outcome.error is None and outcome.job.folder not in finished:
            write_tensorboard(outcome.job, changes[outcome.job.arm])
    context = circumstances(sys.argv[1:], **read_json(folder / "time.json"))
    report = "report" if arms is None else f"report_of_{'_'.join(arms)}"  # keeps the report of all arms
    print(write_report(study, plans, outcomes, context, folder / report))
    check_all_done(outcomes)
    print(f"Curves of all arms: tensorboard --logdir {folder}")


def run_all(jobs: "Sequence[Job]", parallel: int, submit: Any, folder: Path) -> "list[Outcome]":
    """Run the jobs that are not finished, here or by an executor of submitit, and return all outcomes in order.

    The time and the commit are added to time.json in the folder. Ctrl-C exits with status 130.
    """
    from lit_transfusion.studies.cluster import run_on
    from lit_transfusion.studies.report import code_version
    from lit_transfusion.studies.runner import run_here

    left = any(not job.evaluated for job in jobs)
    began = time.monotonic()
    try:
        if submit is not None:
            outcomes = run_on(submit, jobs)
        else:
            outcomes = run_here(jobs, parallel, max(1, (os.cpu_count() or 1) // parallel))
    except KeyboardInterrupt:
        print("Stopped. The same command resumes the study.", file=sys.stderr)
        sys.exit(130)
    finally:
        if left:
            record_time(folder, time.monotonic() - began, code_version())
    return sorted(outcomes, key=lambda outcome: jobs.index(outcome.job))


def check_all_done(outcomes: "Sequence[Outcome]") -> None:
    """Raise InputError if a run failed."""
    failed = sum(outcome.error is not None for outcome in outcomes)
    if failed:
        raise InputError(
            f"{failed} of {len(outcomes)} runs failed; see the report for the reasons. The same command retries them"
        )


def record_time(folder: Path, seconds: float, commit: str) -> None:
    """Add the time and the commit of this start to time.json."""
    path = folder / "time.json"
    earlier = read_json(path)
    seconds = round(earlier.get("seconds", 0.0) + seconds, 1)
    spent = {"seconds": seconds, "commits": list(dict.fromkeys([*earlier.get("commits", []), commit]))}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(spent) + "\n", encoding="utf-8")
