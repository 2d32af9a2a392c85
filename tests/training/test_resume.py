"""A run that was stopped and continued is the run that was not, bit for bit: the whole command, real callbacks."""

import copy
import csv
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import lightning
import pytest
import torch
import yaml

from lit_transfusion.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 8


class Witness(lightning.Callback):
    """Notes each micro-batch: what was in it, what it cost, and the learning rate."""

    seen: ClassVar[list] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((trainer.global_step, batch.tokens, batch.images, outputs["loss"].detach(), rate))


class StopAt(lightning.Callback):
    """Something happens to the run when `step` steps are done."""

    def __init__(self, step: int, where: str) -> None:
        self.step = step
        self.where = where

    def on_before_backward(self, trainer, *_):
        self.stop(trainer, "midst of the next step")

    def on_train_batch_end(self, trainer, *_):
        self.stop(trainer, "callbacks")  # such as the one that draws samples, which takes seconds

    def on_validation_batch_end(self, trainer, *_):
        self.stop(trainer, "validation")

    def stop(self, trainer, where):
        if trainer.global_step == self.step:
            if self.where == "killed":
                raise Killed
            if self.where == "preempted":
                os.kill(os.getpid(), signal.SIGTERM)
            elif self.where == where:
                raise KeyboardInterrupt


class Killed(BaseException):
    """As when the power fails: nothing is saved."""


@pytest.fixture
def fit(tmp_path):
    """Runs `fit` in `tmp_path / name` on the smallest model, and returns what Witness saw."""
    settings = yaml.safe_load((CONFIGS / "default.yaml").read_text())
    small = {
        "ModelCheckpoint": {"every_n_train_steps": 2},
        "ShowSamples": {"every_n_steps": 4, "num_samples": 2, "num_inference_steps": 2, "max_new_tokens": 3},
    }
    callbacks = settings["trainer"]["callbacks"]
    for callback in callbacks:
        callback.setdefault("init_args", {}).update(small.get(callback["class_path"], {}))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def fit(name: str, *arguments: str, stop: tuple[int, str] | None = None, ends_with=None) -> list:
        more = [{"class_path": f"{__name__}.Witness"}]
        if stop is not None:
            more.append({"class_path": f"{__name__}.StopAt", "init_args": {"step": stop[0], "where": stop[1]}})
        shown = copy.deepcopy(callbacks)
        if stop is not None and stop[1] == "killed":
            shown[0]["init_args"]["save_on_exception"] = False
        content = {
            "base": str(CONFIGS / "default.yaml"),
            "trainer": {
                "default_root_dir": str(tmp_path / name),
                "accelerator": "cpu",
                "max_steps": STEPS,
                "val_check_interval": 3,
                "limit_val_batches": 2,
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                "callbacks": [c for c in shown if "Progress" not in c["class_path"]] + more,
            },
            "model": {
                "size": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
                "scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 3}},
                "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1.0e-2}},
            },
            "data": {
                "source": {"class_path": "Shapes", "init_args": {"num_examples": 25, "num_val_examples": 8}},
                "image_size": 16,
                "sequence_length": 96,
                "batch_size": 1,
                "vocab_size": 300,
            },
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        Witness.seen.clear()
        arguments = ["fit", "--config", str(tmp_path / f"{name}.yaml"), *arguments]
        with nullcontext() if ends_with is None else pytest.raises(ends_with):
            main(arguments)
        return list(Witness.seen)

    yield fit
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Lightning ignores SIGINT from the first one on


def assert_same(first, second, where=""):
    """Equal bit for bit, however it is nested."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert first == second, where


def last(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def metrics(folder: Path) -> dict[int, dict[str, str]]:
    """What metrics.csv says of the losses and rates of each step."""
    rows: dict[int, dict[str, str]] = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            names = ("train/loss", "train/loss_text", "train/loss_image", "val/loss", "lr-AdamW/pg1")
            rows.setdefault(int(row["step"]), {}).update({name: row[name] for name in names if row.get(name)})
    return rows


def assert_same_end(first: Path, second: Path) -> None:
    """Weights, average, optimiser, schedule, and where the data stands."""
    first, second = last(first), last(second)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "lit_transfusion"):
        assert_same(first[key], second[key], key)
    states = [checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] for checkpoint in (first, second)]
    assert_same(*states)


@pytest.mark.parametrize("where", ["midst of the next step", "callbacks", "validation"])
def test_run_continued_after_ctrl_c_equals_an_uninterrupted_one(fit, tmp_path, where):
    whole = fit("whole")
    assert [step for step, *_ in whole] == list(range(1, STEPS + 1))
    before = fit("parts", stop=(3, where), ends_with=SystemExit)
    assert len(before) == 3
    after = fit("parts", "--ckpt_path", "last")
    assert_same(before + after, whole)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    weights = last(tmp_path / "parts")["state_dict"]
    assert not torch.equal(weights["net.head.weight"], weights["ema.head.weight"])


def test_run_continued_after_a_crash_goes_back_to_its_last_checkpoint(fit, tmp_path):
    whole = fit("whole")
    before = fit("parts", stop=(5, "killed"), ends_with=Killed)
    after = fit("parts", "--ckpt_path", "last")
    assert [step for step, *_ in after] == [5, 6, 7, 8]  # a checkpoint every two steps
    assert_same(before[:4] + after, whole)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_preempted_run_is_saved_and_says_so_by_its_exit_status(fit, tmp_path):
    whole = fit("whole")
    before = fit("parts", stop=(3, "preempted"), ends_with=SystemExit)
    after = fit("parts", "--ckpt_path", "last")
    assert_same(before + after, whole)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 4, 6, 7])
def test_any_step_will_do_with_workers_and_accumulated_gradients(fit, tmp_path, stop):
    options = ("--data.num_workers", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "6")
    whole = fit("whole", *options)
    assert len(whole) == 2 * STEPS
    before = fit("parts", *options, stop=(stop, "callbacks"), ends_with=SystemExit)
    after = fit("parts", *options, "--ckpt_path", "last")
    assert_same(before + after, whole)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_continued_run_keeps_its_log(fit, tmp_path):
    fit("whole")
    fit("parts", stop=(3, "callbacks"), ends_with=SystemExit)
    fit("parts", "--ckpt_path", "last")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_finished_run_that_is_prolonged_does_not_raise_its_learning_rate_again(fit):
    """A cosine goes up again after its end."""
    rates = [rate for *_, rate in fit("run")]
    longer = fit("run", "--ckpt_path", "last", "--trainer.max_steps", str(2 * STEPS))
    assert [step for step, *_ in longer] == list(range(STEPS + 1, 2 * STEPS + 1))
    assert max(rate for *_, rate in longer) < max(rates) / 2


def test_new_run_moves_an_earlier_one_aside(fit, tmp_path):
    fit("run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    weights = last(tmp_path / "run")["state_dict"]
    fit("run", "--model.seed", "1")
    assert sorted(path.name for path in (tmp_path / "run.1").iterdir()) == before
    assert_same(last(tmp_path / "run.1")["state_dict"], weights)
    assert not torch.equal(last(tmp_path / "run")["state_dict"]["net.head.weight"], weights["net.head.weight"])
    fit("run")
    assert (tmp_path / "run.2" / "config.yaml").exists()
