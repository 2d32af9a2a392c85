"""Arms as jobs of a cluster, by submitit: a job for each run, which goes on by itself when it is preempted."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lit_transfusion.errors import InputError
from lit_transfusion.studies.runner import Job, Outcome, run_job


class Run:
    """What a job of the cluster does. submitit calls `checkpoint` before it is preempted, and queues the answer."""

    def __call__(self, job: Job) -> str | None:
        return run_job(job, threads=0)

    def checkpoint(self, job: Job) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)


def executor(cluster: str, folder: Path, options: dict[str, Any]) -> Any:
    """submitit's.

    Args:
        cluster: "slurm", or "local" for processes of this machine, to try it out.
        folder: Where the cluster's own logs go.
        options: Of the executor, such as slurm_partition, gpus_per_node, timeout_min.

    Raises:
        InputError: There is no submitit, no such cluster, or no such option.
    """
    try:
        import submitit
    except ImportError:
        raise InputError('--cluster needs submitit: pip install -e ".[cluster]"') from None
    try:
        made = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        raise InputError(f"--cluster {cluster}: {error}") from None
    try:
        made.update_parameters(name="lit_transfusion", **options)
    except (NameError, TypeError) as error:
        raise InputError(f"--cluster_options: {error}") from None
    return made


def run_on(executor: Any, jobs: Sequence[Job]) -> list[Outcome]:
    """Submit what is not finished, wait for it, and return what became of each."""
    outcomes = [Outcome(job, None) for job in jobs if job.evaluated]
    finished = {outcome.job.folder for outcome in outcomes}
    left = [job for job in jobs if job.folder not in finished]
    with executor.batch() if left else nullcontext():  # one array
        submitted = [(job, executor.submit(Run(), job)) for job in left]
    print(f"{len(submitted)} jobs submitted; this waits for them, and may be stopped and started again")
    for job, handle in submitted:
        try:
            outcomes.append(Outcome(job, handle.result()))
        except Exception as error:  # whatever became of the node
            outcomes.append(Outcome(job, reason(error)))
        print(f"{job.name}: {outcomes[-1].error or 'done'}")
    return outcomes


def reason(error: Exception) -> str:
    """One line. submitit's message has a traceback between lines of dashes, and then where the logs are."""
    lines = [line for line in str(error).partition("You can check")[0].splitlines() if line.strip(" -")]
    return lines[-1].strip() if lines else type(error).__name__
