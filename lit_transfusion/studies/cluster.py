"""Run a study on a cluster with submitit: one job per run, which resumes after it is preempted."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lit_transfusion.errors import InputError
from lit_transfusion.studies.runner import Job, Outcome, run_job


class Run:
    """The function of a job. submitit calls `checkpoint` before a preemption, and queues what it returns."""

    def __call__(self, job: Job) -> str | None:
        return run_job(job, threads=0)

    def checkpoint(self, job: Job) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)


def executor(cluster: str, folder: Path, options: dict[str, Any]) -> Any:
    """Create submitit's executor.

    Args:
        cluster: "slurm", or "local" for processes on this machine, for a test.
        folder: Directory for the logs of the cluster.
        options: Options of the executor, such as slurm_partition, gpus_per_node, timeout_min.

    Raises:
        InputError: submitit is not installed, or the cluster or an option does not exist.
    """
    try:
        import submitit
    except ImportError:
        raise InputError('--cluster needs submitit: pip install -e ".[cluster]"') from None
    try:
        submitter = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        raise InputError(f"--cluster {cluster}: {error}") from None
    try:
        submitter.update_parameters(name="lit_transfusion", **options)
    except (NameError, TypeError) as error:
        raise InputError(f"--cluster_options: {error}") from None
    return submitter


def run_on(executor: Any, jobs: Sequence[Job]) -> list[Outcome]:
    """Submit the jobs that are not finished, wait for them, and return the outcome of each."""
    outcomes = [Outcome(job, None) for job in jobs if job.evaluated]
    finished = {outcome.job.folder for outcome in outcomes}
    left = [job for job in jobs if job.folder not in finished]
    with executor.batch() if left else nullcontext():  # one job array
        submitted = [(job, executor.submit(Run(), job)) for job in left]
    print(f"{len(submitted)} jobs submitted; waiting for them (you can stop this command and start it again)")
    for job, handle in submitted:
        try:
            outcomes.append(Outcome(job, handle.result()))
        except Exception as error:  # any error of the node
            outcomes.append(Outcome(job, reason(error)))
        print(f"{job.name}: {outcomes[-1].error or 'done'}")
    return outcomes


def reason(error: Exception) -> str:
    """The last line of the traceback in submitit's message, which ends with the path of the logs."""
    lines = [line for line in str(error).partition("You can check")[0].splitlines() if line.strip(" -")]
    return lines[-1].strip() if lines else type(error).__name__
