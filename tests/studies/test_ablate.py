"""Small studies with the real commands, from start to end and killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_study import TINY, write_tiny

from lit_transfusion import cli

ABLATE = [sys.executable, "-m", "lit_transfusion", "ablate"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parent}"}
PATIENCE = 900  # seconds; ten times what an idle machine needs


@pytest.fixture
def ablate(tmp_path, monkeypatch, capsys):
    """Runs the command in this process, which is faster, and returns its exit status and standard error.

    The runs have their own processes.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])

    def ablate(*words: str) -> tuple[int, str]:
        try:
            cli.main(["ablate", *words])
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return ablate


def wait_for(condition, process=None) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "timed out"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def commands(run: Path) -> list[str]:
    """The names of the commands in the log of a run."""
    log = (run / "log.txt").read_text(errors="replace")
    return [line.split()[2] for line in log.splitlines() if line.startswith("$ lit-transfusion ")]


@pytest.mark.slow
def test_small_study_from_its_file_to_its_report(ablate, tmp_path):
    metrics = ["Perplexity", "tiny_study.OutOfReach"]
    write_tiny(tmp_path / "tiny.yaml", study={"metrics": metrics})
    status, errors = ablate("--config", "tiny.yaml", "--seeds", "1", "--output", "out", "--parallel", "2")
    assert status == 0 and "done: causal, seed 0" in errors
    out = tmp_path / "out"
    text = (out / "report" / "README.md").read_text()
    assert text.startswith("# tiny: Who may see whom?") and "2 of 2 runs" in text
    assert "OutOfReach was not measured: its weights | cannot be had" in text
    rows = list(csv.DictReader((out / "report" / "results.csv").open()))
    assert [row["arm"] for row in rows] == ["causal", "both"]
    assert all(1 < float(row["perplexity"]) < 2000 for row in rows) and rows[0]["perplexity"] != rows[1]["perplexity"]
    for arm in ("causal", "both"):
        run = out / arm / "seed_0"
        assert (
            step_of(run / "checkpoints" / "last.ckpt") == json.loads((run / "finished.json").read_text())["step"] == 3
        )
        assert commands(run) == ["fit", "evaluate"] and list(run.glob("events.*"))
    assert json.loads((out / "time.json").read_text())["seconds"] > 0


# A study whose run is long enough to be killed during training
LONG = {"max_steps": 250, "val_check_interval": 100, "limit_val_batches": 1, "log_every_n_steps": 10}
INTERVAL = 20
ONE_RUN = ["--config", "tiny.yaml", "--arms", "causal", "--seeds", "1", "--output", "out"]


def long_study(folder: Path, **changes) -> Path:
    checkpoints = {
        "class_path": "ModelCheckpoint",
        "init_args": {
            "dirpath": "${trainer.default_root_dir}/checkpoints",
            "every_n_train_steps": INTERVAL,
            "save_last": "link",
            "enable_version_counter": False,
            "save_on_exception": True,
        },
    }
    callbacks = [checkpoints, {"class_path": "RunDirectory"}, {"class_path": "LimitThreads"}]
    return write_tiny(
        folder / "tiny.yaml", trainer=LONG | {"callbacks": callbacks}, study={"metrics": ["Perplexity"]}, **changes
    )


@pytest.fixture
def started(tmp_path):
    """A study of one run, during its training."""
    long_study(tmp_path)
    words = [*ABLATE, *ONE_RUN]
    with (tmp_path / "stdout.txt").open("w") as stdout:
        process = subprocess.Popen(
            words,
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        wait_for((tmp_path / "out" / "causal" / "seed_0" / "checkpoints" / "last.ckpt").exists, process)
        yield process
        process.kill()
        process.wait()


@pytest.fixture
def resume(ablate, tmp_path):
    """Calls the command again, and checks that it has finished the run."""

    def resume() -> None:
        status, errors = ablate(*ONE_RUN)
        assert status == 0, errors
        out = tmp_path / "out"
        assert step_of(out / "causal" / "seed_0" / "checkpoints" / "last.ckpt") == LONG["max_steps"]
        assert "1 of 1 runs" in (out / "report_of_causal" / "README.md").read_text()
        assert [path.name for path in (out / "causal").iterdir()] == ["seed_0"]  # nothing was moved aside

    return resume


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_stopped_study_resumes(started, resume, tmp_path, ending):
    run = tmp_path / "out" / "causal" / "seed_0"
    started.send_signal(ending)
    started.wait(PATIENCE)
    assert started.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[ending]
    assert "Traceback" not in started.stderr.read()
    reached = step_of(run / "checkpoints" / "last.ckpt")
    assert reached < LONG["max_steps"] and not (run / "finished.json").exists()
    resume()
    assert commands(run) == ["fit", "fit", "evaluate"]
    second = run / "metrics" / "version_1" / "metrics.csv"
    assert int(next(csv.DictReader(second.open()))["step"]) >= reached  # nothing was trained twice


@pytest.mark.slow
def test_study_waits_for_the_fit_of_a_killed_study(started, resume, tmp_path):
    run = tmp_path / "out" / "causal" / "seed_0"
    started.kill()
    started.wait()
    resume()
    assert commands(run) == ["fit", "evaluate"]  # the first fit has finished the run


@pytest.mark.slow
def test_study_with_all_processes_killed_loses_one_checkpoint_interval_at_most(started, resume, tmp_path):
    run = tmp_path / "out" / "causal" / "seed_0"
    started.kill()
    started.wait()
    (fit,) = [
        int(pid)
        for pid in subprocess.run(
            ["pgrep", "-f", "fit .*--trainer.default_root_dir out/causal/seed_0"], capture_output=True, text=True
        ).stdout.split()
    ]
    os.kill(fit, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{fit}").exists())
    reached = max(step_of(path) for path in (run / "checkpoints").glob("*.ckpt"))
    rows = list(csv.DictReader((run / "metrics" / "version_0" / "metrics.csv").open()))
    assert int(rows[-1]["step"]) - reached <= INTERVAL
    resume()
    assert commands(run) == ["fit", "fit", "evaluate"]
    again = list(csv.DictReader((run / "metrics" / "version_1" / "metrics.csv").open()))
    assert int(again[0]["step"]) >= reached


@pytest.mark.slow
def test_failed_arm_is_reported_and_finished_arms_are_not_repeated(ablate, tmp_path):
    arms = TINY["arms"] | {"broken": {"trainer": {"callbacks+": [{"class_path": "tiny_study.Breaks"}]}}}
    write_tiny(tmp_path / "tiny.yaml", arms=arms, study={"metrics": ["Perplexity"]})
    words = ["--config", "tiny.yaml", "--seeds", "1", "--output", "out", "--parallel", "2"]
    status, errors = ablate(*words)
    assert status == 2 and errors.splitlines()[-1].startswith("error: 1 of 3 runs failed")
    report = tmp_path / "out" / "report" / "README.md"
    assert "2 of 3 runs" in report.read_text() and "- broken, seed 0: RuntimeError: it breaks" in report.read_text()
    status, errors = ablate(*words, "--arms", "causal", "both")
    assert status == 0, errors
    assert "2 of 2 runs" in (tmp_path / "out" / "report_of_causal_both" / "README.md").read_text()
    assert "2 of 3 runs" in report.read_text()  # the report of all arms is unchanged
    other = {"metrics": ["Perplexity", "GenEvalShapes"]}
    write_tiny(tmp_path / "tiny.yaml", arms=arms, study=other)
    assert ablate(*words, "--arms", "causal")[0] == 0
    assert commands(tmp_path / "out" / "causal" / "seed_0") == ["fit", "evaluate", "evaluate"]
    assert commands(tmp_path / "out" / "both" / "seed_0") == ["fit", "evaluate"]
