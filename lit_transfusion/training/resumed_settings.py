"""Makes a resumed run use the optimizer and schedule settings of its config, not those of the checkpoint."""

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import lightning
from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_transfusion.errors import InputError

log = logging.getLogger(__name__)

# Entries of a schedule's state that are not arguments: its progress, and rates that follow from the optimizer.
PROGRESS = {"last_epoch", "_step_count", "_last_lr", "base_lrs", "_get_lr_called_within_step", "_is_initial", "verbose"}


class ResumedSettings(lightning.Callback):
    """Restores moments and step counts from the checkpoint, but not the arguments of optimizer and schedule.

    Learning rate, schedule, weight decay, betas and all other arguments are those of the config. Each difference is
    logged. (torch would restore the arguments, too.) The schedule is not restored: it makes all its steps again from
    the start. If no argument has changed, the rates are bit-equal, whatever the class of the schedule.
    """

    def __init__(self) -> None:
        self.schedules: list[dict[str, Any]] = []  # states in the checkpoint

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Register the hook here: the optimizers exist, and nothing is restored yet."""
        for optimizer in trainer.optimizers:
            optimizer.register_load_state_dict_pre_hook(keep_arguments)

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.schedules = checkpoint.get("lr_schedulers", [])
        checkpoint["lr_schedulers"] = []  # otherwise Lightning would restore them

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        for config, saved in zip(trainer.lr_scheduler_configs, self.schedules, strict=False):
            repeat_steps(config.scheduler, saved.get("last_epoch", trainer.global_step))
            for name, before, now in differences(saved, config.scheduler.state_dict()):
                log_difference("model.scheduler", name, before, now)
        self.schedules = []
        for config in trainer.lr_scheduler_configs:
            log_early_end(getattr(config.scheduler, "total_steps", trainer.max_steps), trainer.max_steps)


def keep_arguments(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Replace the arguments in a state dict by the current ones of the optimizer, before the state is loaded.

    Raises:
        InputError: The state is from another class of optimizer, or for other groups of weights.
    """
    sizes = [[len(group["params"]) for group in part] for part in (state["param_groups"], optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        raise InputError(
            "the optimizer in the checkpoint has other groups of weights than this run; resume with the earlier "
            "model.text_rate and model.base_dim, or start a new run with --model.init_from"
        )
    groups, arguments = [], set()
    for saved, current in zip(state["param_groups"], optimizer.param_groups, strict=True):
        if missing := saved.keys() - current.keys():
            raise InputError(
                f"model.optimizer {type(optimizer).__name__} has no {', '.join(sorted(missing))}, but the optimizer in "
                "the checkpoint has; resume with the earlier class, or start a new run with --model.init_from"
            )
        for name in saved.keys() - {"params", "lr", "initial_lr"}:
            arguments.add((name, str(plain(saved[name])), str(plain(current[name]))))
        rates = [plain(group.get("initial_lr", group["lr"])) for group in (saved, current)]
        arguments.add(("lr", *map(str, rates)))
        groups.append({**current, "params": saved["params"]})
    for name, before, now in sorted(arguments):
        if before != now:
            log_difference("model.optimizer", name, before, now)
    return {**state, "param_groups": groups}


def repeat_steps(schedule: LRScheduler, steps: int) -> None:
    """Make this number of steps of a new schedule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a schedule that steps without its optimizer
        for _ in range(steps):
            schedule.step()


def differences(saved: Any, current: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield name, saved value and current value of each argument that differs between two states of a schedule."""
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in saved.keys() & current.keys() - PROGRESS:
            yield from differences(saved[key], current[key], f"{name}.{key}" if name else key)
    elif isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        for i, (before, now) in enumerate(zip(saved, current, strict=True)):
            yield from differences(before, now, f"{name}[{i}]")
    elif plain(saved) != plain(current):
        yield name, saved, current


def plain(value: Any) -> Any:
    """Convert a value so that it can be compared: rates may be tensors, and betas a tuple or a list."""
    value = value.item() if hasattr(value, "item") else value
    return list(value) if isinstance(value, tuple) else value


@rank_zero_only
def log_difference(part: str, name: str, before: Any, now: Any) -> None:
    """Log an argument that differs from the one in the checkpoint."""
    log.info("resumed with %s %s: %s (%s in the checkpoint)", part, name, now, before)


@rank_zero_only
def log_early_end(total_steps: int, max_steps: int) -> None:
    """Log if the schedule ends before the run.

    This happens with a config.yaml of version 0.1, which contains a number instead of ${trainer.max_steps}.
    """
    if total_steps < max_steps:
        log.info("model.scheduler ends at total_steps %d, before trainer.max_steps %d", total_steps, max_steps)
