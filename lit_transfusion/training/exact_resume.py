"""What makes a run that is stopped anywhere go on as if it had not been, where Lightning would lose something."""

import os
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.training.nonfinite import NonFiniteError


class ExactStops(lightning.Callback):
    """What is written down of a run, when it ends, is interrupted, killed, or refused to be continued, is all that has
    been trained and nothing else.

    The module brings it, so that no config can forget it. It comes before the callbacks that write checkpoints.
    """

    def __init__(self) -> None:
        self.training = False

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["accumulate_grad_batches"] = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        start_at_a_step(checkpoint, trainer.accumulate_grad_batches)
        self._keep_saved(trainer, checkpoint)
        states = checkpoint["callbacks"]
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint) and keeper.state_key in states:
                states[keeper.state_key] = relocated(states[keeper.state_key], keeper.dirpath)

    def _keep_saved(self, trainer: lightning.Trainer, checkpoint: dict[str, Any]) -> None:
        """What is saved need not be saved again before the next step: an error until then, such as of data that have
        changed, would put a place at their beginning into the checkpoint."""
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint):
                keeper._last_global_step_saved = checkpoint["global_step"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.training = True

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Write down what was logged before a checkpoint: a run that is killed goes on from there, and would not log it
        again. (Of the last step before it, Lightning logs after the checkpoint.)"""
        keeper = trainer.checkpoint_callback
        if isinstance(keeper, ModelCheckpoint) and keeper._last_global_step_saved == trainer.global_step:
            for logger in trainer.loggers:
                logger.save()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Keep the last step: where it is no multiple of the interval, last.ckpt would stay at an earlier one. (A
        checkpoint that is judged by what it monitors waits for the validation.)"""
        keeper = trainer.checkpoint_callback
        last = trainer.global_step == trainer.max_steps
        if last and isinstance(keeper, ModelCheckpoint) and keeper.monitor is None:
            candidates = keeper._monitor_candidates(trainer)
            keeper._save_topk_checkpoint(trainer, candidates)
            keeper._save_last_checkpoint(trainer, candidates)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """A batch that Ctrl-C interrupts is learned after the run is continued. Checkpoints are written after this, but
        only if training has begun: in a `predict`, or before all is restored, Lightning's step is 0, and what it would
        save then takes the place of the run's checkpoint."""
        if not self.training:
            for keeper in trainer.checkpoint_callbacks:
                if isinstance(keeper, ModelCheckpoint):
                    keeper._last_global_step_saved = trainer.global_step
        for logger in trainer.loggers:
            logger.save()  # what it has not written yet
        if isinstance(exception, NonFiniteError):  # what is saved came before the trouble
            for keeper in trainer.checkpoint_callbacks:
                keeper.save_on_exception = False
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        if batches.ready > batches.processed and isinstance(trainer.train_dataloader, PackedLoader):
            trainer.train_dataloader.give_back()


def start_at_a_step(checkpoint: dict[str, Any], accumulate_grad_batches: int) -> None:
    """Let a run resume with the first batch of an optimiser step.

    A checkpoint may be written between the batches of a step, as by a validation there. Their gradients are not in it,
    and its place in the data is the one before the step, so that Lightning's count of batches must be, too. The count
    also changes where a step now has more or fewer batches than before.
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
    """The state of a ModelCheckpoint of a run that was copied or moved: the same files in this folder. It names files
    of the run that it was; those are never touched."""
    if state["dirpath"] == folder:
        return state

    def here(path: str) -> str:
        moved = os.path.join(folder, os.path.basename(path))
        return moved if path and os.path.exists(moved) else ""

    state = {**state, "best_model_path": here(state["best_model_path"])}
    if all(map(here, state["best_k_models"])):  # else Lightning begins anew
        state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}
        for key in ("kth_best_model_path", "last_model_path"):
            state[key] = here(state[key])
        state["dirpath"] = folder
    return state
