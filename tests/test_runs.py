"""Tests of run directories: only one `fit` at a time changes a run, and errors do not change it."""

import json
import logging
import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
import yaml

from lit_transfusion import cli, run_folder
from lit_transfusion.commands.evaluate import source_of
from lit_transfusion.config import lightning as lightning_cli

CONFIGS = Path(__file__).parents[1] / "configs"
CONTINUED = ["--config", "run/config.yaml", "--ckpt_path", "last"]
SMALL = {
    "base": str(CONFIGS / "default.yaml"),
    "trainer": {
        "default_root_dir": "run",
        "max_steps": 2,
        "val_check_interval": 2,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
    },
    "model": {
        "size": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
        "patcher": {"class_path": "LinearPatcher", "init_args": {"patch_size": 4}},
    },
    "data": {
        "source": {"class_path": "Shapes", "init_args": {"num_examples": 20, "num_val_examples": 4}},
        "image_size": 16,
        "sequence_length": 96,
        "batch_size": 1,
        "vocab_size": 300,
    },
}


class Breaks(lightning.Callback):
    """Ends a command with an exception `what`, at the place `where`."""

    def __init__(self, where: str, what: str) -> None:
        self.where = where
        self.what = what

    def _break(self, where):
        if where == self.where:
            raise {"Ctrl-C": KeyboardInterrupt, "error": RuntimeError}[self.what]

    def on_fit_start(self, *_):
        self._break("fit")

    def on_validation_batch_end(self, *_):
        self._break("validate")

    def on_test_batch_end(self, *_):
        self._break("test")

    def on_predict_batch_start(self, *_):
        self._break("predict")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    os.chdir(folder)
    try:
        (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
        cli.main(["fit", "--config", "small.yaml"])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def run(trained, tmp_path, monkeypatch):
    """A copy of the run for each test, in the current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained / "small.yaml", tmp_path)
    return shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)


@pytest.fixture
def error_of(capsys):
    def error_of(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(list(words))
        assert caught.value.code == 2
        return capsys.readouterr().err.rstrip("\n").split("\n")[-1]

    return error_of


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(folder: Path) -> dict[str, int]:
    paths = (folder / "checkpoints").glob("*.ckpt")
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in paths}


# Only `fit` writes checkpoints


@pytest.mark.parametrize(
    ("command", "what"),
    [("predict", "Ctrl-C"), ("predict", "error"), ("validate", "Ctrl-C"), ("test", "error"), ("fit", "error")],
)
def test_command_that_is_interrupted_does_not_change_the_checkpoints(run, command, what, monkeypatch):
    """This includes a `fit` before it trains."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning ignores SIGINT after the first one
    before = content(run / "checkpoints")
    breaks = [f"--trainer.callbacks+={__name__}.Breaks", f"--trainer.callbacks.where={command}"]
    with pytest.raises((SystemExit, RuntimeError)) as caught:
        cli.main([command, *CONTINUED, *breaks, f"--trainer.callbacks.what={what}"])
    assert caught.type is (SystemExit if what == "Ctrl-C" else RuntimeError)
    assert content(run / "checkpoints") == before
    assert (run / "checkpoints" / "last.ckpt").is_symlink()


# config.yaml


OVERRIDDEN = [
    ["--config", str(CONFIGS / "quickstart.yaml"), "--trainer.max_steps", "77", "--model.mask", "Causal"],
    pytest.param(
        ["--config", str(CONFIGS / "ablate_mask.yaml"), "--arm", "unet_causal", "--data.batch_size", "3"],
        marks=pytest.mark.slow,
    ),
    ["--config", "small.yaml", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "run"],
]


@pytest.mark.parametrize("words", OVERRIDDEN, ids=["quickstart", "an arm", "another logger"])
def test_saved_config_is_the_config_of_the_run(words, monkeypatch, tmp_path):
    """It includes the options of the command line, and references to other values are still references."""
    built = []

    class Built(lightning_cli.TransfusionCLI):
        def before_fit(self):
            pass

        def fit(self, **_):
            config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))["fit"]
            built.append(({key: value for key, value in config.items() if key != "config"}, self._config_text()))

    monkeypatch.setattr(lightning_cli, "TransfusionCLI", Built)
    cli.main(["fit", *words])
    (first, text) = built[0]
    (tmp_path / "saved.yaml").write_text(text)
    cli.main(["fit", "--config", "saved.yaml"])
    assert built[1] == (first, text)
    cli.main(["fit", "--config", "saved.yaml", "--trainer.max_steps", "9", "--trainer.default_root_dir", "elsewhere"])
    again = built[2][0]
    assert again["model"]["scheduler"]["init_args"]["total_steps"] == again["trainer"]["limit_train_batches"] == 9
    (keeper,) = (part for part in again["trainer"]["callbacks"] if part["class_path"].endswith("ModelCheckpoint"))
    assert keeper["init_args"]["dirpath"] == "elsewhere/checkpoints"


def test_saved_config_keeps_references_to_other_values(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["default_root_dir"] == "run"
    assert config["model"]["scheduler"]["init_args"]["total_steps"] == "${trainer.max_steps}"
    assert config["trainer"]["limit_train_batches"] == (
        "${mul:${trainer.max_steps},${trainer.accumulate_grad_batches}}"
    )
    assert [logger["init_args"]["save_dir"] for logger in config["trainer"]["logger"]] == (
        ["${trainer.default_root_dir}"] * 2
    )


def test_run_from_the_config_of_another_writes_only_into_its_own_directory(run, tmp_path):
    before = content(run)
    cli.main(["fit", "--config", "run/config.yaml", "--trainer.default_root_dir", "other"])
    assert content(run) == before
    other = tmp_path / "other"
    assert set(steps(other).values()) == {2} and (other / "finished.json").exists()
    assert yaml.safe_load((other / "config.yaml").read_text())["trainer"]["default_root_dir"] == "other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run", "small.yaml"]


@pytest.mark.parametrize("link", ["copied", "moved"])
def test_copied_run_resumes_in_its_new_directory(run, tmp_path, link):
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    if link == "moved":
        shutil.rmtree(run)
    before = content(run)
    words = ["--trainer.default_root_dir", "copy", "--trainer.max_steps", "3"]
    cli.main(["fit", "--config", "copy/config.yaml", "--ckpt_path", "last", *words])
    assert content(run) == before and run.exists() == (link == "copied")
    assert list(steps(copy).values()) == [3, 3]  # the copied checkpoint has been replaced


def test_copied_run_whose_config_names_the_original_is_an_error(run, tmp_path, error_of):
    shutil.copytree(run, tmp_path / "copy", symlinks=True)
    before = content(tmp_path)
    for command in ("fit", "predict"):
        message = error_of(command, "--config", "copy/config.yaml", "--ckpt_path", "last")
        for part in ("copy/config.yaml", "trainer.default_root_dir is run", "--trainer.default_root_dir copy"):
            assert part in message
    assert content(tmp_path) == before


def test_config_of_an_earlier_version_does_not_write_into_another_run(run, tmp_path, error_of):
    """It contains values instead of references to other values."""
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("${trainer.default_root_dir}", "run"))
    before = content(tmp_path)
    message = error_of("fit", "--config", "run/config.yaml", "--trainer.default_root_dir", "other")
    for part in ("ModelCheckpoint.dirpath", "run/checkpoints", "default_root_dir other", "${trainer.default_root_dir}"):
        assert part in message
    assert content(tmp_path) == before
    cli.main(["fit", *CONTINUED, "--trainer.max_steps", "3"])  # the run itself may be resumed
    assert set(steps(run).values()) == {3}


@pytest.mark.parametrize("reader", ["evaluate", "train_tokenizer"])
def test_source_of_a_config_may_refer_to_other_values(tmp_path, reader, monkeypatch):
    monkeypatch.setenv("NUMBER", "7")
    init_args = {"num_examples": "${data.vocab_size}", "num_val_examples": "${oc.decode:${oc.env:NUMBER}}"}
    source = {"class_path": "Shapes", "init_args": init_args}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": {"source": source, "vocab_size": 300}}))
    if reader == "evaluate":
        loaded = source_of(tmp_path / "mine.yaml", SimpleNamespace(image_size=16, multiple_of=None))
        assert (len(loaded.split("train")), len(loaded.split("val"))) == (300, 7)
    else:
        options = cli.tool_parser("train_tokenizer").parse_args(["--config", "mine.yaml", "--output", "o.model"])
        assert options.source.init_args.num_examples == 300 and options.source.init_args.num_val_examples == 7


# The lock


def hold(folder: str, ready) -> None:
    with run_folder.locked(Path(folder), new_run=False):
        ready.set()
        ready.wait(120)
        multiprocessing.Event().wait(120)


@pytest.mark.parametrize("words", [CONTINUED, ["--config", "small.yaml"]], ids=["resumed", "new"])
def test_second_fit_in_a_directory_is_an_error_and_changes_nothing(run, tmp_path, error_of, words):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=("run", ready))
    process.start()
    try:
        assert ready.wait(20)
        before = content(tmp_path)
        message = error_of("fit", *words, "--trainer.max_steps", "3")
        assert f"process {process.pid}" in message and "trainer.default_root_dir run is in use" in message
        assert content(tmp_path) == before
    finally:
        process.kill()
        process.join()
    cli.main(["fit", *CONTINUED, "--trainer.max_steps", "3"])
    assert set(steps(run).values()) == {3}


def test_directory_is_locked_while_a_fit_runs(run, monkeypatch):
    seen = []

    def look(self, trainer, *_):
        seen.append(json.loads((run / "fit.json").read_text())["pid"])

    monkeypatch.setattr(Breaks, "on_train_start", look, raising=False)
    breaks = [f"--trainer.callbacks+={__name__}.Breaks", "--trainer.callbacks.where=no", "--trainer.callbacks.what=no"]
    cli.main(["fit", *CONTINUED, "--trainer.max_steps", "3", *breaks])
    assert seen == [os.getpid()] and not (run / "fit.json").exists()


# Finished runs


@pytest.mark.parametrize("killed", [False, True])
def test_finished_run_is_reported_and_does_not_change(run, caplog, killed):
    """If it was killed between its last checkpoint and finished.json, that file is written."""
    caplog.set_level(logging.INFO, "lit_transfusion")
    if killed:
        (run / "finished.json").unlink()
    before = content(run)
    cli.main(["fit", *CONTINUED])
    assert any("finished: 2 steps" in line and "--trainer.max_steps" in line for line in caplog.messages)
    for name in ("checkpoints/last.ckpt", "config.yaml", "tokenizer.model"):
        assert (run / name).read_bytes() == before[name]
    assert json.loads((run / "finished.json").read_text())["step"] == 2
    if not killed:
        assert (run / "finished.json").read_bytes() == before["finished.json"]


# Changed settings


def test_resumed_run_has_the_settings_of_its_config(run, caplog):
    caplog.set_level(logging.INFO, "lit_transfusion")
    new = ["--trainer.max_steps", "4", "--model.optimizer.lr", "1e-3", "--model.scheduler.warmup_steps", "1"]
    cli.main(["fit", *CONTINUED, *new])
    end = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert end["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 1e-3
    assert end["lr_schedulers"][0]["total_steps"] == 4 and end["lr_schedulers"][0]["warmup_steps"] == 1
    assert end["lr_schedulers"][0]["_last_lr"] == pytest.approx([1.5e-5] * 2)  # the final rate, after all steps
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-3 and config["ckpt_path"] is None
    changes = [line for line in caplog.messages if line.startswith("resumed with")]
    assert len(changes) == 3 and "model.optimizer lr: 0.001 (0.0003 in the checkpoint)" in changes[0]
