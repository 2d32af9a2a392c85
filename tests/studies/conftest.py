"""Fixtures of the tests of studies: a study that takes seconds, and runs that look finished."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_study import STAND_IN, write_metrics, write_tiny

import lit_transfusion
from lit_transfusion.studies.runner import Job
from lit_transfusion.studies.study import read_study


@pytest.fixture
def tiny(tmp_path):
    return write_tiny(tmp_path / "tiny.yaml")


@pytest.fixture
def make_study(tmp_path):
    def make_study(**changes):
        return read_study(write_tiny(tmp_path / "study.yaml", **changes))

    return make_study


@pytest.fixture
def make_job(tmp_path):
    """Create a run of five steps that has not started."""

    def make_job(arm="causal", seed=0, **changes):
        folder = tmp_path / "runs" / arm / f"seed_{seed}"
        fit = ["--arm", arm, "--trainer.default_root_dir", str(folder)]
        job = Job(arm, seed, folder, fit, "model: {}\nmax_steps: 5\n", "metrics: [Perplexity]\n", 5)
        return job._replace(**changes)

    return make_job


@pytest.fixture
def finished(make_job):
    """Create a finished run with these results."""

    def finished(arm="causal", seed=0, columns=None, skipped=None, losses=((2, 5.0, 1.0), (5, 4.0, 0.5)), pictures=0):
        job = make_job(arm, seed)
        job.folder.mkdir(parents=True)
        (job.folder / "finished.json").write_text(json.dumps({"step": 5}))
        (job.folder / "evaluate.yaml").write_text(job.evaluate)
        result = {"metrics": {"3": columns or {}}, "skipped": skipped or {}}
        if pictures:
            (job.folder / "samples").mkdir()
            result["prompts"] = [f"prompt {i}" for i in range(pictures)]
            for i in range(pictures):
                Image.new("RGB", (16, 16), (255, 0, 10 * i)).save(job.folder / "samples" / f"{i}.png")
        (job.folder / "evaluation.json").write_text(json.dumps(result))
        write_metrics(job, 0, [{"step": step - 1, "val/loss_text": a, "val/loss_image": b} for step, a, b in losses])
        return job

    return finished


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Replace the command by a script; return a function that reads the words of its calls."""

    def stand_in(script="finish()"):
        (tmp_path / "lit_transfusion").mkdir(exist_ok=True)
        # This package comes before the installed one and takes its other modules from there.
        installed = Path(lit_transfusion.__file__)
        package = installed.read_text() + f"\n__path__.append({str(installed.parent)!r})\n"
        (tmp_path / "lit_transfusion" / "__init__.py").write_text(package)
        (tmp_path / "lit_transfusion" / "__main__.py").write_text(STAND_IN + script)
        monkeypatch.chdir(tmp_path)
        calls = tmp_path / "calls.txt"
        return lambda: [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []

    return stand_in
