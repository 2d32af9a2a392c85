"""Adapts and checks the arguments of the trainer."""

from typing import Any

from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_transfusion.errors import InputError
from lit_transfusion.training.atomic_checkpoints import WholeCheckpoints

# Setting of the trainer → the callbacks that Lightning does not allow if it is false.
SWITCHES = {"logger": LearningRateMonitor, "enable_progress_bar": ProgressBar, "enable_checkpointing": Checkpoint}


def settle(config: dict[str, Any], fit: bool) -> None:
    """Remove callbacks that a setting switches off, and add atomic writing of checkpoints.

    Args:
        config: Arguments of the trainer, changed in place.
        fit: Whether the command is `fit`.

    Raises:
        InputError: A number of steps or batches is invalid.
    """
    for name, kind in SWITCHES.items():
        if config.get(name) in (False, []):
            config["callbacks"] = [one for one in as_list(config.get("callbacks")) if not isinstance(one, kind)]
    if not shards_weights(config.get("strategy")):  # sharded checkpoints are folders
        config["plugins"] = [*as_list(config.get("plugins")), *whole_checkpoints(config)]
    if fit:
        check_lengths(config)


def shards_weights(strategy: Any) -> bool:
    return strategy == "fsdp2" or isinstance(strategy, ModelParallelStrategy)


def whole_checkpoints(config: dict[str, Any]) -> list[CheckpointIO]:
    """Return the plugin that writes checkpoints atomically, unless the config has a CheckpointIO."""
    given = any(isinstance(plugin, CheckpointIO) for plugin in as_list(config.get("plugins")))
    return [] if given else [WholeCheckpoints()]


def check_lengths(config: dict[str, Any]) -> None:
    if config.get("max_steps", 1) < 1:
        raise InputError(
            f"trainer.max_steps {config['max_steps']} is invalid: it determines the schedule and the end "
            "of the run; use at least 1"
        )
    for name in ("max_epochs", "accumulate_grad_batches", "limit_train_batches", "log_every_n_steps"):
        if config.get(name) == 0:
            raise InputError(f"trainer.{name} 0 is invalid: nothing would be trained or logged; use at least 1")
    if config.get("val_check_interval") == 0:
        raise InputError(
            "trainer.val_check_interval 0 is invalid: to switch validation off, use trainer.limit_val_batches 0"
        )


def as_list(parts: Any) -> list[Any]:
    return [] if parts is None else parts if isinstance(parts, list) else [parts]
