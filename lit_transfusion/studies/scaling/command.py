"""The `scaling` command: train each arm of a study at several sizes and lengths, and fit how its numbers scale."""

import sys
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.run_folder import read_json
from lit_transfusion.studies.command import check_all_done, run_all


def scaling(
    config: str,
    seeds: int = 3,
    parallel: int = 1,
    dry_run: bool = False,
    output: str | None = None,
    override: list[str] | None = None,
    cluster: Literal["slurm", "local"] | None = None,
    cluster_options: dict[str, Any] = {},  # noqa: B006 (never changed)
) -> None:
    """Train all arms of a study at several sizes and lengths, evaluate them, and fit how their numbers scale.

    Runs of one seed that differ only in length share the part before their learning rates decay. The same command
    resumes a comparison that was stopped. A run that fails does not stop the others.

    Args:
        config: YAML file with `arms` and a section `study.scaling`, such as configs/scaling.yaml.
        seeds: Number of seeds. Each arm is trained with the seeds 0, 1, ….
        parallel: Number of runs at the same time. They share the cores, and the GPUs if there are enough.
        dry_run: Only print the plan: sizes, steps, tokens, FLOPs, expected time.
        output: Directory of the runs and of report/. Null is runs/NAME of the file.
        override: Options of `fit` for all runs, such as --override=--data.batch_size=2.
        cluster: Run on a cluster: slurm, or local to test this on one machine.
        cluster_options: Options of submitit's executor: {slurm_partition: …, gpus_per_node: 8, timeout_min: 1440}.
    """
    # Imports are here, since they take seconds, and --help is quick.
    from lit_transfusion.studies.cluster import executor
    from lit_transfusion.studies.runner import check_earlier
    from lit_transfusion.studies.study import read_study

    try:
        from lit_transfusion.studies.report import circumstances
        from lit_transfusion.studies.scaling.grid import cells_of, make_runs, table_of
        from lit_transfusion.studies.scaling.report import write_report
    except ImportError as error:
        raise InputError(f'scaling needs {error.name}: pip install -e ".[evaluation]"') from None

    check_at_least("--seeds", seeds)
    check_at_least("--parallel", parallel)
    study = read_study(config)
    asked = study.asked.scaling
    if asked is None:
        raise InputError(f"{config} has no section `study.scaling`; add one with sizes and steps, or use `ablate`")
    folder = Path(output or f"runs/{study.name}")
    submit = executor(cluster, folder / "cluster", cluster_options) if cluster is not None and not dry_run else None
    console = Console(stderr=True)
    with console.status("planning the runs"):
        cells = cells_of(study, asked, override or [], timed=dry_run)
    console.print(table_of(cells, seeds, parallel))
    if dry_run:
        return
    runs = make_runs(study, cells, seeds, folder)
    jobs = [run.job for run in runs]
    for job in jobs:
        check_earlier(job)
    outcomes = run_all(jobs, parallel, submit, folder)
    context = circumstances(sys.argv[1:], **read_json(folder / "time.json"))
    print(write_report(study, asked, runs, outcomes, context, folder / "report"))
    check_all_done(outcomes)
