"""Makes interrupted runs resume bit-exactly, where Lightning alone would not."""

import os
from typing import Any

import lightning

from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.lightning_compat import (
    batch_counts,
    is_within_batch,
    mark_as_saved,
    model_checkpoints,
    save_now,
    saved_step,
)
from lit_transfusion.training.nonfinite import NonFiniteError


class ExactResume(lightning.Callback):
    """Makes checkpoints and logs match the trained steps when a run ends, is interrupted or killed, or cannot resume.

    The module adds this callback, so that a config need not name it. It runs before the callbacks that write
    checkpoints.
    """

    def __init__(self) -> None:
        self.training = False

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["accumulate_grad_batches"] = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        start_at_a_step(checkpoint, trainer.accumulate_grad_batches)
        # Otherwise an error before the next step, for example because the data have changed, would save a checkpoint
        # whose data position is the start.
        mark_as_saved(trainer, checkpoint["global_step"])
        states = checkpoint["callbacks"]
        for callback in model_checkpoints(trainer):
            if callback.state_key in states:
                states[callback.state_key] = relocated(states[callback.state_key], callback.dirpath)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.training = True

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Write the logs of the steps before a checkpoint. A killed run resumes from there and does not log them again.

        (Lightning logs the last of these steps after the checkpoint.)
        """
        if saved_step(trainer) == trainer.global_step:
            write_logs(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Save the last step. If it is not a multiple of the interval, last.ckpt would stay at an earlier step.

        (A checkpoint callback that monitors a metric saves after the validation.)
        """
        for callback in model_checkpoints(trainer)[:1]:
            if trainer.global_step == trainer.max_steps and callback.monitor is None:
                save_now(callback, trainer)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Return an interrupted batch to the loader, so that the resumed run trains on it.

        Checkpoints are written after this, but only if training has started. In a `predict`, or before the state is
        restored, Lightning's step is 0, and such a checkpoint would replace that of the run.
        """
        if not self.training or isinstance(exception, NonFiniteError):  # keep the last finite checkpoint
            mark_as_saved(trainer, trainer.global_step)
        write_logs(trainer)
        if is_within_batch(trainer) and isinstance(trainer.train_dataloader, PackedLoader):
            trainer.train_dataloader.give_back()


def write_logs(trainer: lightning.Trainer) -> None:
    for logger in trainer.loggers:
        logger.save()


def start_at_a_step(checkpoint: dict[str, Any], accumulate_grad_batches: int) -> None:
    """Make a run resume with the first batch of an optimiser step, by changing Lightning's counts of batches.

    A checkpoint may be written between the batches of a step, for example by a validation. It does not contain their
    gradients, and its data position is the start of the step, so the count of batches must be that, too. The count also
    changes if a step now has more or fewer batches than before.
    """
    before = checkpoint.get("accumulate_grad_batches", accumulate_grad_batches)
    progress = batch_counts(checkpoint)
    done = progress["current"]["processed"]
    if done % before == 0 and before == accumulate_grad_batches:
        return
    for counts in (progress["current"], progress["total"]):
        moved = done - done // before * accumulate_grad_batches
        counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), counts["processed"] - moved))


def relocated(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """Adapt the state of a ModelCheckpoint to a run that was copied or moved to `folder`.

    The state contains paths of the original run, whose files must not be changed.
    """
    if state["dirpath"] == folder:
        return state

    def here(path: str) -> str:
        moved = os.path.join(folder, os.path.basename(path))
        return moved if path and os.path.exists(moved) else ""

    state = {**state, "best_model_path": here(state["best_model_path"])}
    if all(map(here, state["best_k_models"])):  # otherwise Lightning starts with an empty list
        state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}
        for key in ("kth_best_model_path", "last_model_path"):
            state[key] = here(state[key])
        state["dirpath"] = folder
    return state
