"""Runs as jobs of a cluster, with submitit's local executor."""

import json

import pytest

from lit_transfusion.errors import InputError
from lit_transfusion.studies.cluster import Run, executor, run_on

submitit = pytest.importorskip("submitit")


def test_preempted_job_is_queued_again(make_job):
    job = make_job()
    again = Run().checkpoint(job)
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert isinstance(again.function, Run) and again.args == (job,) and not again.kwargs


def test_unknown_option_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"--cluster_options: .*nothing"):
        executor("local", tmp_path, {"nothing": 1})


def test_missing_cluster_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"--cluster slurm: .*srun"):
        executor("slurm", tmp_path, {})


def test_finished_runs_are_not_submitted(finished, tmp_path):
    jobs = [finished("causal"), finished("both")]
    outcomes = run_on(executor("local", tmp_path / "cluster", {}), jobs)
    assert [(outcome.job, outcome.error) for outcome in outcomes] == [(job, None) for job in jobs]


@pytest.mark.slow  # each job imports torch and Lightning
def test_jobs_run_and_each_outcome_is_returned(make_job, stand_in, tmp_path):
    stand_in("if 'bad' in str(folder):\n    sys.exit('it is bad')\nfinish()")
    jobs = [make_job("good"), make_job("bad"), make_job("lost")]
    jobs[2] = jobs[2]._replace(planned=None)  # cannot be written, so the job itself fails
    local = executor("local", tmp_path / "cluster", {"timeout_min": 5})
    first, second, third = run_on(local, jobs)
    assert first.error is None and first.job.evaluated
    assert second.error.startswith("it is bad (exit status 1")
    assert "TypeError" in third.error
    assert json.loads((jobs[0].folder / "evaluation.json").read_text())["metrics"]
