"""Tests that a stopped and resumed run equals an uninterrupted one bit for bit, with the whole command."""

import csv
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import lightning
import pytest
import torch
import yaml
from small_run import SMALLEST_DATA, SMALLEST_MODEL, read

from lit_transfusion.cli import main
from lit_transfusion.data.packing import tensor_of

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 8


class Witness(lightning.Callback):
    """Records each micro-batch: its content, its loss, and the learning rate."""

    seen: ClassVar[list] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        images = torch.cat([tensor_of(group.images).flatten() for group in batch.image_groups])
        self.seen.append((trainer.global_step, batch.tokens, images, outputs["loss"].detach(), rate))


class StopAt(lightning.Callback):
    """Stops the run after `step` steps, at the place `where`."""

    def __init__(self, step: int, where: str) -> None:
        self.step = step
        self.where = where

    def on_before_backward(self, trainer, *_):
        self.stop(trainer, "during the next step")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.stop(trainer, "callbacks")  # for example while samples are drawn, which takes seconds
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            self.stop(trainer, "between the batches of the next step")

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
    """Ends the run without saving anything, like a power failure."""


def config(folder: Path, stop: tuple[int, str] | None) -> dict:
    """Make the config of the smallest run, with the callbacks of configs/default.yaml and ShowSamples."""
    below, own = (yaml.safe_load((CONFIGS / name).read_text())["trainer"] for name in ("trainer.yaml", "default.yaml"))
    callbacks = below["callbacks"] + own["callbacks+"]
    callbacks = [c for c in callbacks if not c["class_path"].endswith(("Progress", "ShowSamples"))]
    (checkpoint,) = (c for c in callbacks if c["class_path"] == "ModelCheckpoint")
    checkpoint["init_args"]["every_n_train_steps"] = 2
    if stop is not None and stop[1] == "killed":
        checkpoint["init_args"]["save_on_exception"] = False
    few = {"every_n_steps": 4, "num_samples": 2, "num_inference_steps": 2, "max_new_tokens": 3}
    callbacks.append({"class_path": "ShowSamples", "init_args": few})
    callbacks.append({"class_path": f"{__name__}.Witness"})
    if stop is not None:
        callbacks.append({"class_path": f"{__name__}.StopAt", "init_args": {"step": stop[0], "where": stop[1]}})
    return {
        "base": str(CONFIGS / "default.yaml"),
        "trainer": {
            "default_root_dir": str(folder),
            "accelerator": "cpu",
            "max_steps": STEPS,
            "val_check_interval": 3,
            "limit_val_batches": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "callbacks": callbacks,
        },
        "model": SMALLEST_MODEL
        | {
            "scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 3}},
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1.0e-2}},
        },
        "data": dict(SMALLEST_DATA),  # a copy, because tests change the source
    }


def fit(folder: Path, *arguments: str, stop: tuple[int, str] | None = None) -> list:
    """Run `fit` in `folder`, and return what Witness saw."""
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config(folder, stop)))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    Witness.seen.clear()
    with nullcontext() if stop is None else pytest.raises((SystemExit, Killed)):
        main(["fit", "--config", str(path), *arguments])
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Lightning ignores SIGINT after the first one
    return list(Witness.seen)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, and what Witness saw."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    seen = fit(folder)
    assert [step for step, *_ in seen] == list(range(1, STEPS + 1))
    return folder, seen


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def assert_same(first, second, where=""):
    """Assert that two nested values are equal bit for bit."""
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


def newest(folder: Path) -> dict:
    checkpoints = [read(path) for path in (folder / "checkpoints").glob("*.ckpt")]
    return max(checkpoints, key=lambda checkpoint: checkpoint["global_step"])


def metrics(folder: Path) -> dict[int, dict[str, str]]:
    """Read losses and learning rates of each step from metrics.csv, without a line that a killed process began."""
    rows: dict[int, dict[str, str]] = {}
    for path in sorted((folder / "metrics").glob("version_*/metrics.csv")):
        text = path.read_text()
        for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
            names = ("train/loss", "train/loss_text", "train/loss_image", "val/loss", "lr-AdamW/pg1")
            rows.setdefault(int(row["step"]), {}).update({name: row[name] for name in names if row.get(name)})
    return rows


def assert_same_end(first: Path, second: Path) -> None:
    """Compare weights, average, optimiser, schedule, and data position of the newest checkpoints."""
    first, second = newest(first), newest(second)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "lit_transfusion"):
        assert_same(first[key], second[key], key)
    states = [checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] for checkpoint in (first, second)]
    assert_same(*states)


@pytest.mark.parametrize("where", ["during the next step", "callbacks", "validation"])
def test_run_resumed_after_ctrl_c_equals_an_uninterrupted_one(whole, folder, where):
    before = fit(folder, stop=(3, where))
    assert len(before) == 3
    after = fit(folder, "--ckpt_path", "last")
    assert_same(before + after, whole[1])
    assert_same_end(folder, whole[0])


def test_run_resumed_after_a_crash_starts_at_its_last_checkpoint(whole, folder):
    before = fit(folder, stop=(5, "killed"))
    after = fit(folder, "--ckpt_path", "last")
    assert [step for step, *_ in after] == [5, 6, 7, 8]  # a checkpoint every two steps
    assert_same(before[:4] + after, whole[1])
    assert_same_end(folder, whole[0])


@pytest.mark.parametrize("call", ["remove", "symlink"])
@pytest.mark.slow
def test_run_killed_while_last_is_replaced_resumes_from_the_newest_checkpoint(whole, folder, monkeypatch, call):
    """Lightning removes the earlier checkpoint and the link last.ckpt, and then creates a new link."""
    original, last = getattr(os, call), "last.ckpt"

    def die(*arguments, **options):
        if str(arguments[-1]).endswith(last) and list((folder / "checkpoints").glob("*step=4*")):
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, die)
        before = fit(folder, stop=(STEPS + 1, "killed"))
    assert [step for step, *_ in before] == [1, 2, 3, 4]
    assert not (folder / "checkpoints" / last).exists()
    after = fit(folder, "--ckpt_path", "last")
    assert_same(before + after, whole[1])
    assert_same_end(folder, whole[0])
    assert torch.load(folder / "checkpoints" / last, weights_only=True)["global_step"] == STEPS


def test_preempted_run_is_saved(whole, folder):
    before = fit(folder, stop=(3, "preempted"))
    after = fit(folder, "--ckpt_path", "last")
    assert_same(before + after, whole[1])
    assert_same_end(folder, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 4, 6, 7])
def test_run_stopped_at_any_step_resumes_with_workers_and_accumulated_gradients(folder, tmp_path, stop):
    options = ("--data.num_workers", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "6")
    uninterrupted = fit(tmp_path / "uninterrupted", *options)
    assert len(uninterrupted) == 2 * STEPS
    before = fit(folder, *options, stop=(stop, "callbacks"))
    after = fit(folder, *options, "--ckpt_path", "last")
    assert_same(before + after, uninterrupted)
    assert_same_end(folder, tmp_path / "uninterrupted")


ACCUMULATE = ("--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "3")


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory):
    """An uninterrupted run of two batches in each step."""
    folder = tmp_path_factory.mktemp("accumulated") / "run"
    return folder, fit(folder, *ACCUMULATE)


@pytest.mark.parametrize("where", ["during the next step", "between the batches of the next step"])
def test_run_stopped_within_a_step_resumes_with_that_step(accumulated, folder, where):
    """The checkpoint does not contain its gradients, so its documents must be read again."""
    before = fit(folder, *ACCUMULATE, stop=(3, where))
    after = fit(folder, *ACCUMULATE, "--ckpt_path", "last")
    assert_same(before[:6] + after, accumulated[1])
    assert_same_end(folder, accumulated[0])


@pytest.mark.slow
def test_checkpoint_of_a_validation_within_a_step_resumes_with_that_step(folder, tmp_path):
    """The validation is after the third batch, which is the first of the second step."""

    def run(where, *options, stop=None):
        return fit(where, *ACCUMULATE, "--trainer.max_steps", "4", *options, stop=stop)

    monitored = tmp_path / "monitored.yaml"
    keeper = {"dirpath": "${trainer.default_root_dir}/checkpoints", "monitor": "val/loss", "save_top_k": -1}
    keeper["filename"] = "{epoch}-{step}-validated"
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": keeper}]
    monitored.write_text(yaml.safe_dump({"trainer": {"callbacks+": callbacks}}))
    whole = run(tmp_path / "uninterrupted", "--config", str(monitored))
    before = run(folder, "--config", str(monitored), stop=(2, "killed"))
    (saved,) = (folder / "checkpoints").glob("*step=1-validated.ckpt")
    after = run(folder, "--config", str(monitored), "--ckpt_path", str(saved))
    assert [step for step, *_ in before] == [0, 1, 1, 2] and len(after) == 6
    assert_same(before[:2] + after, whole)
    assert_same_end(folder, tmp_path / "uninterrupted")


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2), (2, 3)])
@pytest.mark.slow
def test_number_of_batches_in_a_step_may_change(folder, first, second):
    """The data resume at the same document, and each step has the new number of batches."""
    fit(folder, "--trainer.accumulate_grad_batches", str(first), stop=(3, "callbacks"))
    after = fit(folder, "--trainer.accumulate_grad_batches", str(second), "--ckpt_path", "last")
    steps = [step for step, *_ in after]
    ends = [step for number, step in enumerate(steps, 1) if number % second == 0]
    assert ends == [4, 5, 6, 7, 8] and len(steps) == 5 * second


def test_resume_with_an_error_does_not_change_the_run(whole, folder, capsys):
    """Here the source has other examples. No checkpoint may be saved, as its data position would be the start."""
    before = fit(folder, stop=(3, "callbacks"))
    names = "checkpoints/last.ckpt", "config.yaml", "tokenizer.model"
    written = [(folder / name).read_bytes() for name in names]
    tokenizer = ("--data.tokenizer_model", str(folder / "tokenizer.model"))
    with pytest.raises(SystemExit):
        fit(folder, "--ckpt_path", "last", *tokenizer, "--data.source.init_args.num_examples", "11")
    assert "11 examples" in capsys.readouterr().err
    assert [(folder / name).read_bytes() for name in names] == written
    after = fit(folder, "--ckpt_path", "last")
    assert_same(before + after, whole[1])
    assert_same_end(folder, whole[0])


@pytest.mark.parametrize("stop", [(1, "callbacks"), (3, "killed")])
@pytest.mark.slow
def test_last_checkpoint_of_a_resumed_run_is_its_newest(folder, stop):
    """There is no second file such as last-v1.ckpt."""
    fit(folder, stop=stop)
    fit(folder, "--ckpt_path", "last")
    assert [path.name for path in (folder / "checkpoints").glob("last*")] == ["last.ckpt"]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == STEPS


@pytest.mark.slow
def test_last_step_is_saved_if_it_is_no_multiple_of_the_interval(folder):
    """Otherwise the evaluation would use weights of an earlier step."""
    fit(folder, "--trainer.max_steps", "5")
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"))
    assert [torch.load(path, weights_only=True)["global_step"] for path in checkpoints] == [5, 5]  # and the link
    again = fit(folder, "--ckpt_path", "last", "--trainer.max_steps", "6")
    assert [step for step, *_ in again] == [6]


@pytest.mark.slow
def test_run_extended_by_more_steps_equals_one_that_had_them_from_the_start(whole, folder):
    """Its last checkpoint therefore also contains the average of its last step."""
    schedule = "--model.scheduler.total_steps", str(STEPS)
    fit(folder, "--trainer.max_steps", "5", *schedule)
    fit(folder, "--ckpt_path", "last", *schedule)
    assert_same_end(whole[0], folder)


def test_resumed_run_keeps_its_log(whole, folder):
    fit(folder, stop=(3, "callbacks"))
    fit(folder, "--ckpt_path", "last")
    logged, expected = metrics(folder), metrics(whole[0])
    assert logged.keys() == expected.keys()
    logged.pop(2), expected.pop(2)  # Lightning logs a step after its callbacks, during which the run was stopped
    assert logged == expected


def test_extended_run_follows_the_longer_schedule(whole, folder):
    """The cosine of torch would rise again after its end."""
    shutil.copytree(whole[0], folder, symlinks=True)
    longer = fit(folder, "--ckpt_path", "last", "--trainer.max_steps", str(2 * STEPS))
    assert [step for step, *_ in longer] == list(range(STEPS + 1, 2 * STEPS + 1))
    rates = [rate for *_, rate in longer]
    assert rates == sorted(rates, reverse=True)
    assert max(rates) < max(rate for *_, rate in whole[1])


@pytest.mark.slow
def test_one_seed_changes_weights_data_and_noise(folder):
    """Compares with runs that have seed 0 for one of these parts only."""

    def first_step(number, *words):
        one_step = ["--trainer.max_steps", "1", "--seed_everything", "1"]
        ((_, tokens, images, loss, _),) = fit(folder.with_name(str(number)), *one_step, *words)
        return tokens, images, loss

    all_1, data_0, noise_0 = first_step(1), first_step(2, "--data.seed", "0"), first_step(3, "--model.seed", "0")
    assert not torch.equal(all_1[0], data_0[0])
    assert torch.equal(all_1[0], noise_0[0]) and torch.equal(all_1[1], noise_0[1]) and all_1[2] != noise_0[2]
    assert_same(all_1, first_step(4, "--model.seed", "1", "--data.seed", "1"))


def test_new_run_moves_an_earlier_one_aside(whole, folder):
    shutil.copytree(whole[0], folder, symlinks=True)
    (folder.with_name("run.1")).mkdir()  # from an earlier run
    fit(folder, "--model.seed", "1", "--trainer.max_steps", "1")
    aside = folder.with_name("run.2")
    assert sorted(path.name for path in aside.iterdir()) == sorted(path.name for path in whole[0].iterdir())
    assert newest(aside)["global_step"] == STEPS and newest(folder)["global_step"] == 1


@pytest.mark.slow
def test_resumed_run_with_dropout_and_flow_matching_equals_an_uninterrupted_one(folder, tmp_path):
    """Dropout draws from the global generator, and flow matching draws timesteps that are not whole numbers."""
    options = "--model.size.dropout", "0.3", "--model.size.modality_weights", "ffn", "--model.noise", "FlowMatching"
    uninterrupted = fit(tmp_path / "uninterrupted", *options)
    before = fit(folder, *options, stop=(3, "callbacks"))
    torch.rand(5)  # another state of the global generator
    after = fit(folder, *options, "--ckpt_path", "last")
    assert_same(before + after, uninterrupted)
    assert_same_end(folder, tmp_path / "uninterrupted")


@pytest.mark.slow
def test_resumed_run_on_texts_and_pictures_equals_an_uninterrupted_one(folder, tmp_path):
    """It is stopped during an epoch of each source, and within a text of several documents."""
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"text {number} of some words\n" * (number + 1))
    sources = {"text": {"class_path": "TextCorpus", "init_args": {"path": str(tmp_path), "val_fraction": 0.1}}}
    sources["pairs"] = {"class_path": "Shapes", "init_args": {"num_examples": 25, "num_val_examples": 8}}
    later = {number: {"text": share, "pairs": 1 - share} for number, share in ((2, 0.7), (4, 0.2))}
    given = {"sources": sources, "weights": {"text": 0.4, "pairs": 0.6}, "later": later}
    mixed = {"class_path": "Mix", "init_args": given}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump({"data": {"source": mixed}}))
    options = "--config", str(tmp_path / "mixed.yaml")
    uninterrupted = fit(tmp_path / "uninterrupted", *options)
    before = fit(folder, *options, stop=(3, "callbacks"))
    (state,) = newest(folder)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["ranks"]
    assert all(place["used"] for place in state["streams"])
    after = fit(folder, *options, "--ckpt_path", "last")
    assert_same(before + after, uninterrupted)
    assert_same_end(folder, tmp_path / "uninterrupted")
    header = next(csv.reader((tmp_path / "uninterrupted" / "metrics" / "version_0" / "metrics.csv").open(newline="")))
    assert {"val/text/loss_text", "val/pairs/loss_text", "val/pairs/loss_image", "data/share_text"} <= set(header)
    assert not {"val/loss", "val/text/loss_image"} & set(header)
