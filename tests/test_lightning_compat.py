"""What breaks when a private name of Lightning or jsonargparse is gone: one test for each.

The last tests are of private methods that our subclasses override, and of other behaviour that is not documented. If
one fails after an update of a library, the docstring of the function tells what to look for.
"""

import os
import signal
import subprocess
import sys

import lightning
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from lit_transfusion import lightning_compat
from lit_transfusion.config.lightning import Parser
from lit_transfusion.training.fsdp import FSDP2Strategy


class At(Callback):
    """Calls a function with the trainer before (or after) batch 1."""

    def __init__(self, before=lambda trainer: None, after=lambda trainer: None) -> None:
        self.before, self.after = before, after

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.before(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.after(trainer)


@pytest.fixture
def make_trainer(tmp_path):
    def make_trainer(*callbacks, **options):
        options = {
            "max_steps": 3,
            "limit_val_batches": 0,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
        } | options
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
        return lightning.Trainer(callbacks=[*callbacks], **options, **quiet)

    return make_trainer


@pytest.fixture
def keeper(tmp_path):
    """A callback that saves checkpoints after every second step and on errors."""
    options = {"save_top_k": -1, "save_last": True, "save_on_exception": True}
    return ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, **options)


def saved(keeper) -> list[str]:
    return sorted(os.listdir(keeper.dirpath))


# Checkpoints


def test_saved_step_is_that_of_the_last_checkpoint(make_trainer, keeper):
    trainer = make_trainer(keeper)
    assert lightning_compat.saved_step(trainer) == 0
    trainer.fit(BoringModel())
    assert lightning_compat.saved_step(trainer) == 2


@pytest.mark.parametrize("marked", [True, False])
def test_step_that_is_marked_as_saved_is_not_saved(make_trainer, keeper, marked):
    def end(trainer):
        if marked:
            lightning_compat.mark_as_saved(trainer, trainer.global_step)
        raise RuntimeError("the end")

    with pytest.raises(RuntimeError, match="the end"):
        make_trainer(At(before=end), keeper).fit(BoringModel())
    assert os.path.exists(os.path.join(keeper.dirpath, "last.ckpt")) == (not marked)


def test_checkpoint_can_be_saved_between_two_intervals(make_trainer, keeper):
    def save(trainer):
        lightning_compat.save_now(keeper, trainer)

    make_trainer(keeper, At(before=save), max_steps=2).fit(BoringModel())
    assert saved(keeper) == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "last.ckpt"]


def test_counts_of_batches_in_a_checkpoint_decide_where_a_run_resumes(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=4)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    checkpoint = torch.load(tmp_path / "four.ckpt", weights_only=True)
    counts = lightning_compat.batch_counts(checkpoint)
    names = {"ready", "started", "processed", "completed"}
    assert names <= counts["current"].keys() and names <= counts["total"].keys()
    assert counts["current"]["processed"] == counts["total"]["processed"] == 4
    for part in counts.values():
        if isinstance(part, dict):
            part.update(dict.fromkeys(names, 1))
    torch.save(checkpoint, tmp_path / "one.ckpt")
    seen = []

    class Seen(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch_idx)

    make_trainer(Seen(), max_steps=5).fit(BoringModel(), ckpt_path=tmp_path / "one.ckpt")
    assert seen == [1], "Lightning does not start at the count of batches in the checkpoint"


def test_batch_that_is_fetched_and_not_processed_is_detected(make_trainer):
    seen = []

    def look(trainer):
        seen.append(lightning_compat.is_within_batch(trainer))

    class Last(Callback):
        def on_train_end(self, trainer, pl_module):
            look(trainer)

    make_trainer(At(before=look, after=look), Last()).fit(BoringModel())
    assert seen == [True, False, False]


def test_state_of_a_checkpoint_callback_has_the_paths_that_we_relocate(keeper):
    """training/exact_resume.py changes them when a run was copied or moved."""
    paths = {"dirpath", "best_model_path", "best_k_models", "kth_best_model_path", "last_model_path"}
    assert paths <= keeper.state_dict().keys()


def test_callbacks_of_the_module_run_between_those_of_the_trainer_and_checkpoints(make_trainer, keeper):
    """Otherwise checkpoints would be written before the callbacks of LitTransfusion prepare them."""
    ours = Callback()

    class Model(BoringModel):
        def configure_callbacks(self):
            return [ours]

    theirs = At()
    trainer = make_trainer(keeper, theirs, max_steps=1)
    trainer.fit(Model())
    assert [callback for callback in trainer.callbacks if callback in (ours, theirs, keeper)] == [theirs, ours, keeper]


# Processes and signals


def test_our_signal_handler_replaces_that_of_lightning_during_a_fit(make_trainer):
    received = []

    def register():
        signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))

    class Replace(Callback):
        def setup(self, trainer, pl_module, stage):
            lightning_compat.replace_signal_handlers(trainer, register)

    def send(trainer):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(Replace(), At(before=send))
    trainer.fit(BoringModel())
    assert received == [signal.SIGTERM] and trainer.global_step == 3
    assert signal.getsignal(signal.SIGTERM) == before, "Lightning does not restore the handlers after the run"


def test_cluster_environment_is_known(make_trainer):
    assert isinstance(lightning_compat.cluster_environment(make_trainer()), LightningEnvironment)
    slurm = make_trainer(plugins=[SLURMEnvironment(auto_requeue=False)])
    assert isinstance(lightning_compat.cluster_environment(slurm), SLURMEnvironment)


def test_processes_that_lightning_started_can_be_killed(make_trainer):
    trainer = make_trainer(strategy="ddp", devices=2)
    trainer.strategy._configure_launcher()  # as at the start of a run
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    trainer.strategy.launcher.procs = [child]
    lightning_compat.kill_started_processes(trainer, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    lightning_compat.kill_started_processes(make_trainer(), signal.SIGKILL)  # has no processes


def test_sharding_is_over_all_devices(make_trainer, monkeypatch):
    """Lightning's default is tensor parallelism within a node, so that weights would not be sharded."""
    asked = []
    monkeypatch.setattr(
        "lightning.pytorch.strategies.model_parallel._setup_device_mesh", lambda *sizes: asked.append(sizes[:2])
    )
    monkeypatch.setattr("lightning.pytorch.strategies.model_parallel._init_dist_connection", lambda *_, **__: None)
    strategy = make_trainer(strategy=FSDP2Strategy(), devices=2, num_nodes=3).strategy
    strategy.connect(BoringModel())
    strategy.setup_environment()
    assert asked == [(6, 1)]


# The command line


class Cli(lightning.pytorch.cli.LightningCLI):
    def before_instantiate_classes(self):
        self.before = True

    def fit(self, **options):
        self.fitted = options

    def _parse_ckpt_path(self):
        self.parsed = True


@pytest.fixture
def cli():
    options = ["fit", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    return Cli(BoringModel, args=options, save_config_callback=None, auto_configure_optimizers=False)


def test_each_subcommand_has_a_parser(cli):
    keys = lightning_compat.parser_of(cli, "fit").get_defaults().keys()
    assert "trainer.max_steps" in keys and "ckpt_path" in keys
    assert lightning_compat.parser_of(cli, "nothing") is cli.parser


def test_hooks_that_our_command_line_overrides_are_called(cli):
    """Without `fit` a run has no lock, and without `_parse_ckpt_path` a checkpoint overwrites the config."""
    assert cli.before and cli.parsed and cli.fitted["model"] is cli.model


def test_config_is_dumped_before_references_are_resolved(tmp_path):
    """config.yaml keeps ${...} only if jsonargparse dumps the config to resolve them."""
    parser = Parser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_argument("--a", type=int, default=1)
    parser.add_argument("--b", type=int, default="${a}")
    assert parser.parse_args(["--a", "3"]).b == 3
    assert parser.unresolved["b"].startswith("${")


def test_imports_can_be_limited_for_a_while(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_callback.py").write_text("from lightning import Callback\n\nclass Own(Callback):\n    pass\n")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "part")
    with lightning_compat.imports_limited_to(["lit_transfusion"]), pytest.raises(ArgumentError, match="own_callback"):
        parser.parse_object({"part": "own_callback.Own"})
    assert "own_callback" not in sys.modules
    assert parser.parse_object({"part": "own_callback.Own"}).part.class_path == "own_callback.Own"
    monkeypatch.delitem(sys.modules, "own_callback")
