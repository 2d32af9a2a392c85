"""On resume, the optimizer and the schedule have the settings of the config, not those of the checkpoint."""

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

# What a schedule's state contains beside its arguments: where it is, and rates, which follow from the optimizer's.
PROGRESS = {"last_epoch", "_step_count", "_last_lr", "base_lrs", "_get_lr_called_within_step", "_is_initial", "verbose"}


class ResumedSettings(lightning.Callback):
    """Moments and the number of steps come from the checkpoint; the learning rate, its schedule, weight decay, betas
    and what else is an argument are those of this start, and each that differs is logged.

    torch would restore arguments, too. The schedule is not restored but repeated: it is stepped from its beginning as
    often as it was, which gives the same rates to the last bit if nothing has changed, whatever its class.
    """

    def __init__(self) -> None:
        self.schedules: list[dict[str, Any]] = []  # their states in the checkpoint

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """The optimizers exist, and nothing is restored yet."""
        for optimizer in trainer.optimizers:
            optimizer.register_load_state_dict_pre_hook(keep_arguments)

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.schedules = checkpoint.get("lr_schedulers", [])
        checkpoint["lr_schedulers"] = []  # which Lightning would restore

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        for config, saved in zip(trainer.lr_scheduler_configs, self.schedules, strict=False):
            repeat(config.scheduler, saved.get("last_epoch", trainer.global_step))
            for name, before, now in differences(saved, config.scheduler.state_dict()):
                tell("model.scheduler", name, before, now)
        self.schedules = []
        for config in trainer.lr_scheduler_configs:
            tell_of_the_end(getattr(config.scheduler, "total_steps", trainer.max_steps), trainer.max_steps)


def keep_arguments(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state to load, its arguments replaced by those that the optimizer has now.

    Raises:
        InputError: The state is that of another kind of optimizer.
    """
    groups, told = [], set()
    for saved, current in zip(state["param_groups"], optimizer.param_groups, strict=False):
        if missing := saved.keys() - current.keys():
            raise InputError(
                f"model.optimizer {type(optimizer).__name__} has no {', '.join(sorted(missing))}, which that of the "
                "checkpoint has: resume with the same class, or begin a new run with its weights (--model.init_from)"
            )
        for name in saved.keys() - {"params", "lr", "initial_lr"}:
            told.add((name, str(plain(saved[name])), str(plain(current[name]))))
        rates = [plain(group.get("initial_lr", group["lr"])) for group in (saved, current)]
        told.add(("lr", *map(str, rates)))
        groups.append({**current, "params": saved["params"]})
    for name, before, now in sorted(told):
        if before != now:
            tell("model.optimizer", name, before, now)
    groups += state["param_groups"][len(groups) :]  # which torch does not accept
    return {**state, "param_groups": groups}


def repeat(schedule: LRScheduler, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer makes no steps meanwhile
        for _ in range(steps):
            schedule.step()


def differences(saved: Any, current: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The arguments that two states of a schedule do not share, by their names."""
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in saved.keys() & current.keys() - PROGRESS:
            yield from differences(saved[key], current[key], f"{name}.{key}" if name else key)
    elif isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        for i, (before, now) in enumerate(zip(saved, current, strict=True)):
            yield from differences(before, now, f"{name}[{i}]")
    elif plain(saved) != plain(current):
        yield name, saved, current


def plain(value: Any) -> Any:
    """A value that can be compared: rates may be tensors, and betas a tuple or a list."""
    value = value.item() if hasattr(value, "item") else value
    return list(value) if isinstance(value, tuple) else value


@rank_zero_only
def tell(part: str, name: str, before: Any, now: Any) -> None:
    log.info("resumed with %s %s: %s (%s in the checkpoint)", part, name, now, before)


@rank_zero_only
def tell_of_the_end(total_steps: int, max_steps: int) -> None:
    """A config.yaml of version 0.1 holds a number where its config had ${trainer.max_steps}."""
    if total_steps < max_steps:
        log.info("model.scheduler ends at total_steps %d, before trainer.max_steps %d", total_steps, max_steps)
