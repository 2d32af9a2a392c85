"""Adapts and checks the arguments of the trainer."""

import math
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, LearningRateMonitor, ProgressBar
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


def check_steps(trainer: lightning.Trainer) -> None:
    """Check that all optimiser steps have the same number of batches, and that gradients are clipped by norm.

    Raises:
        InputError: A setting of the trainer contradicts this.
    """
    number = trainer.accumulate_grad_batches
    batches = trainer.num_training_batches
    if math.isfinite(batches) and batches % number:
        raise InputError(
            f"trainer.limit_train_batches {batches} is not a multiple of trainer.accumulate_grad_batches {number}, so "
            f"the last optimiser step would have fewer batches; use {batches // number * number or number}"
        )
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler) and set(callback.scheduling.values()) != {number}:
            raise InputError(
                f"trainer.callbacks: GradientAccumulationScheduler with {callback.scheduling} is not supported: "
                "a run is one epoch; set trainer.accumulate_grad_batches, which may change when the run is resumed"
            )
    if trainer.gradient_clip_algorithm not in (None, "norm"):
        raise InputError("trainer.gradient_clip_algorithm value is not supported; use norm")
