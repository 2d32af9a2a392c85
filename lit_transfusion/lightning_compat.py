"""Every use of a private name of Lightning or jsonargparse, with its reason.

tests/test_lightning_compat.py has a test for each, and for the private methods that our subclasses override. Run it
first with a new version of either library.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing Lightning takes seconds
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.plugins.environments import ClusterEnvironment
    from lightning.pytorch.strategies import ModelParallelStrategy


# Checkpoints


def model_checkpoints(trainer: "Trainer") -> list["ModelCheckpoint"]:
    """Return the callbacks that write checkpoints, without those of other classes, whose names are unknown."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def saved_step(trainer: "Trainer") -> int:
    """Return the step of the newest checkpoint of this process, or 0. Lightning has no public name for it."""
    return max((callback._last_global_step_saved for callback in model_checkpoints(trainer)), default=0)


def mark_as_saved(trainer: "Trainer", step: int) -> None:
    """Let no callback save this step. Lightning has no public way to prevent one checkpoint."""
    for callback in model_checkpoints(trainer):
        callback._last_global_step_saved = step


def save_now(callback: "ModelCheckpoint", trainer: "Trainer") -> None:
    """Save a checkpoint and last.ckpt now. Lightning's public hooks save at multiples of the interval only."""
    candidates = callback._monitor_candidates(trainer)
    callback._save_topk_checkpoint(trainer, candidates)
    callback._save_last_checkpoint(trainer, candidates)


def batch_counts(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return Lightning's counts of training batches in a checkpoint: `current`, and `total` with earlier epochs.

    A resumed run starts at `current`. Lightning does not document where a checkpoint contains it.
    """
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]


def is_within_batch(trainer: "Trainer") -> bool:
    """Whether training has fetched a batch and not processed it. Lightning's progress is not public."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    return batches.ready > batches.processed


# Processes and signals


def replace_signal_handlers(trainer: "Trainer", register: Callable[[], None]) -> None:
    """Call `register` right after Lightning has registered its signal handlers.

    Lightning's handler of SIGTERM waits for the other processes inside the handler, which hangs, and no argument
    switches it off. Lightning restores the earlier handlers after the run, however it ends.
    """
    connector = trainer._signal_connector

    def register_all() -> None:
        type(connector).register_signal_handlers(connector)
        register()

    connector.register_signal_handlers = register_all


def cluster_environment(trainer: "Trainer") -> "ClusterEnvironment":
    """Return what starts the processes: Lightning, SLURM, torchrun. The strategy has it only if it is distributed."""
    return trainer._accelerator_connector.cluster_environment


def kill_started_processes(trainer: "Trainer", number: int) -> None:
    """Send a signal to the processes that this one has started as scripts. Lightning has no public launcher class."""
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(number)


def shard_over_all_devices(strategy: "ModelParallelStrategy") -> None:
    """Shard over all devices of all nodes. Lightning's argument needs a number, and "auto" is the number of nodes."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


# The command line


def parser_of(cli: "LightningCLI", command: str) -> "ArgumentParser":
    """Return the parser of a subcommand, or the main parser if there is no such subcommand.

    Lightning's attribute is private.
    """
    return vars(cli).get("_subcommand_parsers", {}).get(command, cli.parser)  # missing without subcommands


@contextmanager
def imports_limited_to(modules: Sequence[str]) -> Iterator[None]:
    """Let jsonargparse import these modules only.

    Its public function adds to its settings and cannot remove from them, so they are restored here.
    """
    from jsonargparse import _common, set_parsing_settings

    before = dict(_common.parsing_settings)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(modules))
    try:
        yield
    finally:
        _common.parsing_settings.update(before)
