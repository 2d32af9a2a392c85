"""A run that was stopped and continued is the run that was not, bit for bit: the whole command with the real callbacks."""

import csv
import signal
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
    """Ctrl-C after `step` steps: in the midst of the next one, or among the callbacks, as when samples are drawn."""

    def __init__(self, step: int, midst: bool) -> None:
        self.step = step
        self.midst = midst

    def on_before_backward(self, trainer, *_):
        if self.midst and trainer.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, *_):
        if not self.midst and trainer.global_step == self.step:
            raise KeyboardInterrupt


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
    interrupt = signal.getsignal(signal.SIGINT)

    def fit(name: str, *arguments: str, stop: dict | None = None, exit_code: int | None = None) -> list:
        more = [{"class_path": f"{__name__}.Witness"}]
        if stop is not None:
            more.append({"class_path": f"{__name__}.StopAt", "init_args": stop})
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
                "callbacks": [c for c in callbacks if "Progress" not in c["class_path"]] + more,
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
        if exit_code is None:
            main(arguments)
        else:
            with pytest.raises(SystemExit) as caught:
                main(arguments)
            assert caught.value.code == exit_code
        return list(Witness.seen)

    yield fit
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it from the first Ctrl-C on


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
    """What metrics.csv says of each step, but for what the clock has a part in."""
    rows: dict[int, dict[str, str]] = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            said = {name: value for name, value in row.items() if value and "throughput" not in name}
            rows.setdefault(int(row["step"]), {}).update(said)
    return rows


@pytest.mark.parametrize("midst", [True, False])
def test_stopped_and_continued_run_equals_an_uninterrupted_one(fit, tmp_path, midst):
    whole = fit("whole")
    before = fit("parts", stop={"step": 3, "midst": midst}, exit_code=1)
    assert len(before) == 3
    after = fit("parts", "--ckpt_path", "last")
    assert_same(before + after, whole)
    assert [step for step, *_ in whole] == list(range(1, STEPS + 1))

    first, second = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert first["global_step"] == STEPS
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "lit_transfusion"):
        assert_same(first[key], second[key], key)
    states = [checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] for checkpoint in (first, second)]
    assert_same(*states)
    assert not torch.equal(first["state_dict"]["net.head.weight"], first["state_dict"]["ema.head.weight"])
