"""Makes interrupted runs resume bit-exactly, where Lightning alone would not."""

import os
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.training.nonfinite import NonFiniteError


class ExactStops(lightning.Callback):
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
        self._mark_as_saved(trainer, checkpoint)
        states = checkpoint["callbacks"]
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint) and keeper.state_key in states:
                states[keeper.state_key] = relocated(states[keeper.state_key], keeper.dirpath)

    def _mark_as_saved(self, trainer: lightning.Trainer, checkpoint: dict[str, Any]) -> None:
        """Mark the step of the checkpoint as saved, so that it is not saved again before the next step.

        Otherwise an error before that step, for example because the data have changed, would save a checkpoint whose
        data position is the start.
        """
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint):
                keeper._last_global_step_saved = checkpoint["global_step"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.training = True

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Write the logs of the steps before a checkpoint. A killed run resumes from there and does not log them again.

        (Lightning logs the last of these steps after the checkpoint.)
        """
        keeper = trainer.checkpoint_callback
        if isinstance(keeper, ModelCheckpoint) and keeper._last_global_step_saved == trainer.global_step:
            for logger in trainer.loggers:
                logger.save()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Save the last step. If it is not a multiple of the interval, last.ckpt would stay at an earlier step.

        (A checkpoint callback that monitors a metric saves after the validation.)
        """
        keeper = trainer.checkpoint_callback
        last = trainer.global_step == trainer.max_steps
        if last and isinstance(keeper, ModelCheckpoint) and keeper.monitor is None:
            candidates = keeper._monitor_candidates(trainer)
            keeper._save_topk_checkpoint(trainer, candidates)
            keeper._save_last_checkpoint(trainer, candidates)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Return an interrupted batch to the loader, so that the resumed run trains on it.

        Checkpoints are written after this, but only if training has started. In a `predict`, or before the state is
        restored, Lightning's step is 0, and such a checkpoint would replace that of the run.
        """
        if not self.training:
            for keeper in trainer.checkpoint_callbacks:
                if isinstance(keeper, ModelCheckpoint):
                    keeper._last_global_step_saved = trainer.global_step
        for logger in trainer.loggers:
            logger.save()  # write pending rows
        if isinstance(exception, NonFiniteError):  # keep the last finite checkpoint
            for keeper in trainer.checkpoint_callbacks:
                keeper.save_on_exception = False
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        if batches.ready > batches.processed and isinstance(trainer.train_dataloader, PackedLoader):
            trainer.train_dataloader.give_back()


def start_at_a_step(checkpoint: dict[str, Any], accumulate_grad_batches: int) -> None:
    """Make a run resume with the first batch of an optimiser step, by changing Lightning's counts of batches.

    A checkpoint may be written between the batches of a step, for example by a validation. It does not contain their
    gradients, and its data position is the start of the step, so the count of batches must be that, too. The count also
    changes if a step now has more or fewer batches than before.
    """
    before = checkpoint.get("accumulate_grad_batches", accumulate_grad_batches)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
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
