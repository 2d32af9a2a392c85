"""Tests with real SIGINT and SIGTERM: a run stops after its step with a checkpoint, and resumes bit-exactly."""

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from forked_fit import ForkedFit
from killed_run import steps
from test_kill import ENVIRONMENT, wait_for_step
from test_resume import Witness, assert_same, assert_same_end, config

from lit_transfusion.cli import main

STEPS = 6
NUMBERS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
STATUS = {"SIGINT": 1, "SIGTERM": 143}  # of `fit`


@pytest.fixture(autouse=True)
def handlers():
    """Restores the signal handlers of this process, which may have been started to ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in (*NUMBERS.values(), signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Signal(lightning.Callback):
    """Sends a signal to this process somewhere in the step that follows `step`, `count` times."""

    def __init__(self, number: int, step: int, where: str, count: int = 1) -> None:
        self.number, self.step, self.where, self.count = number, step, where, count

    def _send(self, trainer, where):
        if (trainer.global_step, where) == (self.step, self.where) and not trainer.sanity_checking:
            for _ in range(self.count):
                os.kill(os.getpid(), self.number)
                self.count -= 1

    def setup(self, trainer, pl_module, stage):
        self._send(trainer, "set-up")

    def on_train_start(self, trainer, pl_module):
        self._send(trainer, "start")

    def on_before_backward(self, trainer, *_):
        self._send(trainer, "first micro-batch")

    def on_train_batch_end(self, trainer, *_):
        self._send(trainer, "callbacks")

    def on_save_checkpoint(self, trainer, *_):
        self._send(trainer, "checkpoint")

    def on_validation_batch_end(self, trainer, *_):
        self._send(trainer, "validation")


def write_config(folder: Path, *callbacks: dict, **trainer) -> Path:
    content = config(folder, None)
    content["trainer"]["callbacks"] += callbacks
    content["trainer"] |= {"max_steps": STEPS, "accumulate_grad_batches": 2, "val_check_interval": 6, **trainer}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def fit(path: Path, *arguments: str) -> list:
    Witness.seen.clear()
    main(["fit", "--config", str(path), *arguments])
    return list(Witness.seen)


def fit_until_signal(folder: Path, number: int, step: int, where: str, count: int = 1) -> tuple[int, list]:
    """Return the exit status of a run that gets a signal, and the batches that Witness saw."""
    given = {"number": int(number), "step": step, "where": where, "count": count}
    path = write_config(folder, {"class_path": f"{__name__}.Signal", "init_args": given})
    with pytest.raises(SystemExit) as caught:
        fit(path)
    return caught.value.code, list(Witness.seen)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, and what Witness saw of each micro-batch."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    return folder, fit(write_config(folder))


@pytest.mark.parametrize(
    ("name", "step", "where", "expected"),
    [
        ("SIGTERM", 2, "first micro-batch", 3),
        ("SIGINT", 3, "validation", 3),
        *(
            pytest.param(name, step, where, expected, marks=pytest.mark.slow)
            for name, step, where, expected in [
                ("SIGINT", 2, "first micro-batch", 3),
                ("SIGTERM", 3, "validation", 3),
                ("SIGINT", 3, "callbacks", 3),
                ("SIGTERM", 4, "callbacks", 4),
                ("SIGTERM", 4, "checkpoint", 5),
                ("SIGINT", 2, "checkpoint", 3),
            ]
        ),
    ],
)
def test_run_stops_after_its_step_and_resumes_bit_exactly(whole, tmp_path, name, step, where, expected):
    """Each step has two micro-batches. Validation is stopped between two of its batches."""
    folder = tmp_path / "run"
    status, before = fit_until_signal(folder, NUMBERS[name], step, where)
    assert status == STATUS[name]
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == before[-1][0] == expected and len(before) == 2 * expected
    after = fit(write_config(folder), "--ckpt_path", "last")
    assert_same(before + after, whole[1])
    assert_same_end(folder, whole[0])


@pytest.mark.parametrize(("name", "where"), [("SIGTERM", "set-up"), ("SIGINT", "start")])
def test_signal_before_training_stops_immediately_without_a_checkpoint(tmp_path, name, where):
    status, seen = fit_until_signal(tmp_path / "run", NUMBERS[name], 0, where)
    assert (status, seen) == (STATUS[name], [])
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_second_ctrl_c_stops_immediately_without_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_transfusion.training.graceful_stop.SAME_SECONDS", 0.0)
    status, seen = fit_until_signal(tmp_path / "run", signal.SIGINT, 1, "first micro-batch", count=2)
    assert (status, len(seen)) == (STATUS["SIGINT"], 2)
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_same_signal_twice_in_a_second_counts_once(tmp_path, name):
    status, seen = fit_until_signal(tmp_path / "run", NUMBERS[name], 1, "first micro-batch", count=2)
    assert (status, seen[-1][0]) == (STATUS[name], 2)
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_signal_in_the_last_step_changes_nothing(whole, tmp_path, name):
    given = {"number": int(NUMBERS[name]), "step": STEPS - 1, "where": "first micro-batch"}
    seen = fit(write_config(tmp_path / "run", {"class_path": f"{__name__}.Signal", "init_args": given}))
    assert_same(seen, whole[1])
    assert (tmp_path / "run" / "finished.json").exists()


def test_handlers_are_restored_after_a_run(tmp_path):
    before = [signal.getsignal(number) for number in NUMBERS.values()]
    fit(write_config(tmp_path / "run", max_steps=1))
    assert [signal.getsignal(number) for number in NUMBERS.values()] == before
    fit_until_signal(tmp_path / "stopped", signal.SIGTERM, 1, "callbacks")
    assert [signal.getsignal(number) for number in NUMBERS.values()] == before


@pytest.mark.slow
def test_a_slurm_job_is_saved_and_queued_again_at_the_end_of_a_step(whole, tmp_path, monkeypatch):
    """A job gets SIGUSR1 before its time limit, and SIGTERM when it is queued again. A script replaces scontrol."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queued\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    job = {"JOB_ID": 7, "JOB_NAME": "train", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for key, value in job.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    folder, name = tmp_path / "run", f"{__name__}.Signal"
    requeue = {"number": int(signal.SIGUSR1), "step": 2, "where": "first micro-batch"}
    end = {"number": int(signal.SIGTERM), "step": 3, "where": "first micro-batch"}
    path = write_config(folder, *({"class_path": name, "init_args": given} for given in (requeue, end)))
    with pytest.raises(SystemExit) as caught:
        fit(path)
    assert caught.value.code == 143
    assert (tmp_path / "queued").read_text() == "requeue 7\n"
    assert torch.load(folder / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"] == 3
    after = fit(write_config(folder))  # Lightning finds the checkpoint of the job
    assert_same(after, whole[1][6:])
    assert_same_end(folder, whole[0])


# Several processes

RANKS = 2


def write_config_of_ranks(folder: Path, strategy: str, accumulate: int) -> Path:
    witness = {"class_path": "killed_run.Witness"}, {"class_path": "LimitThreads"}
    given = {"strategy": strategy, "devices": RANKS, "max_steps": 40, "val_check_interval": 20}
    path = write_config(folder, *witness, **given, accumulate_grad_batches=accumulate)
    content = yaml.safe_load(path.read_text())
    callbacks = [one for one in content["trainer"]["callbacks"] if "test_resume" not in one["class_path"]]
    content["trainer"]["callbacks"] = callbacks
    path.write_text(yaml.safe_dump(content))
    return path


def words_of(path: Path) -> list[str]:
    return ["--config", str(path), "--data.num_workers", "1"]


@pytest.fixture(scope="module")
def whole_of_ranks(tmp_path_factory):
    """Returns the folder of an uninterrupted run, which is made once for each strategy and accumulation."""

    @cache
    def whole_of_ranks(strategy: str, accumulate: int) -> Path:
        folder = tmp_path_factory.mktemp(f"{strategy}{accumulate}") / "whole"
        words = words_of(write_config_of_ranks(folder, strategy, accumulate))
        assert ForkedFit(words, folder.parent, RANKS).wait(timeout=600) == 0, (folder.parent / "errors").read_text()
        return folder

    return whole_of_ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "accumulate", "name", "who", "started_by"),
    [
        ("ddp", 1, "SIGTERM", "group", "torchrun"),
        ("ddp", 2, "SIGTERM", "first", "command"),
        ("ddp", 2, "SIGTERM", "second", "torchrun"),
        ("ddp", 2, "SIGINT", "group", "command"),
        ("fsdp2", 2, "SIGTERM", "group", "torchrun"),
        ("fsdp2", 1, "SIGTERM", "second", "command"),
    ],
)
def test_all_processes_stop_after_the_same_step(tmp_path, whole_of_ranks, strategy, accumulate, name, who, started_by):
    """The signal is sent to one process, or to all of them and their workers, as a terminal or a cluster does.

    The processes are those of torchrun, or those of the command, whose first process watches the second.
    """
    folder = tmp_path / "parts"
    words = words_of(write_config_of_ranks(folder, strategy, accumulate))

    def errors() -> str:
        return (tmp_path / "errors").read_text()[-3000:]

    if started_by == "torchrun":
        run = ForkedFit(words, tmp_path, RANKS)
    else:
        with open(tmp_path / "errors", "w") as file:
            command = [sys.executable, "-m", "lit_transfusion", "fit", *words]
            run = subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, start_new_session=True, stderr=file)
    try:
        wait_for_step(folder, 7, lambda: run.poll() is None)
        time.sleep(0.05)
        if who == "group":
            os.killpg(run.pid, NUMBERS[name])
        elif who == "first":
            os.kill(run.pid, NUMBERS[name])
        else:
            os.kill(run.processes[1].pid if started_by == "torchrun" else second_of(run.pid), NUMBERS[name])
        assert run.wait(timeout=120) == STATUS[name], errors()
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    done = [list(steps(folder, rank)) for rank in range(RANKS)]
    assert len({len(seen) for seen in done}) == 1 and len(done[0]) % accumulate == 0
    (checkpoint,) = {path.resolve() for path in (folder / "checkpoints").glob("last.ckpt")}
    assert checkpoint.name == f"epoch=0-step={done[0][-1][0]}.ckpt"
    assert ForkedFit([*words, "--ckpt_path", "last"], tmp_path, RANKS).wait(timeout=600) == 0, errors()
    whole = whole_of_ranks(strategy, accumulate)
    for rank in range(RANKS):
        assert list(steps(folder, rank)) == list(steps(whole, rank))
    assert_same_end(folder, whole)


def second_of(parent: int) -> int:
    """Return the process id of rank 1, which a `fit` has started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            started_by = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        if started_by == parent and b"LOCAL_RANK=1" in environment:
            return int(path.name)
    raise AssertionError("there is no second process")
