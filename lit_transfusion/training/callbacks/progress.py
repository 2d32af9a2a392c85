"""The progress of a run, as a bar on a terminal or as lines in a log."""

import math
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar

from lit_transfusion.lightning_compat import saved_step
from lit_transfusion.progress import Pace, Progress, Row

LOSSES = {  # of a run, and of an autoencoder
    "train/loss_text": "text",
    "train/loss_image": "image",
    "train/loss_l1": "L1",
    "train/loss_perceptual": "perceptual",
    "train/loss_gan": "GAN",
}
RATES = {"throughput/images_per_second": "images/s", "throughput/tokens_per_second": "tokens/s"}
SECONDS = 1.0  # between two refreshes, each of which synchronises the GPU


class RunProgress(ProgressBar):
    """Shows the optimiser steps, the losses, images per second and the time left, on standard error.

    On a terminal, or in a notebook, it is a bar. Otherwise it prints lines: the first soon after the start, then one
    each minute, or one for each percent of a longer run. The lines also report validations and checkpoints.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.progress: Progress | None = None

    def disable(self) -> None:  # Lightning calls this in all processes but the first
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def _open(self, trainer: lightning.Trainer) -> None:
        if self.progress is None:
            self.progress = Progress(self.enabled and trainer.is_global_zero)
            self.progress.start()

    def _close(self, failed: bool = False) -> None:
        if self.progress is not None:
            self.progress.stop(failed)
            self.progress = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._open(trainer)
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self.steps = self.progress.add("training", total, trainer.global_step, unit="steps")
        self.refreshed = 0.0
        self.validations = Pace(first=0.0)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if self.progress.shown and time.monotonic() - self.refreshed > SECONDS:
            self.refreshed = time.monotonic()
            self._refresh(trainer, pl_module)

    def _refresh(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        rate = next((rate for rate in RATES if metrics.get(rate, 0) > 0), None)
        parts = [f"{short} {metrics[name].item():.4g}" for name, short in LOSSES.items() if name in metrics]
        if rate is not None:
            parts.append(f"{metrics[rate].item():.4g} {RATES[rate]}")
        if (step := saved_step(trainer)) and not self.progress.bars:
            parts.append(f"checkpoint of step {step}")
        self.steps.update(trainer.global_step, note=", ".join(parts))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._refresh(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close(failed=True)

    # Validation, test and predict

    def _on_start(self, trainer: lightning.Trainer, doing: str, batches: list[int | float]) -> Row:
        self._open(trainer)
        total = sum(batches)  # infinite if all batches of a loader without a length are used
        return self.progress.add(doing, total if math.isfinite(total) else None, unit="batches")

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self.evaluation = self._on_start(trainer, "validation", batches)

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.evaluation = self._on_start(trainer, "test", trainer.num_test_batches)

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.evaluation = self._on_start(trainer, "prediction", trainer.num_predict_batches)

    def on_validation_batch_end(self, *_: Any) -> None:
        self.evaluation.update(self.evaluation.done + 1)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            self._close()
            return
        self.progress.remove(self.evaluation)
        if trainer.sanity_checking or self.progress.bars or not self.validations.due:
            return
        losses = {name: value for name, value in trainer.callback_metrics.items() if is_loss(name)}
        if losses:
            text = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            self.progress.say(f"validation at step {trainer.global_step}: {text}")
            self.validations.printed(self.steps.expected)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._close()

    on_predict_end = on_test_end


def is_loss(name: str) -> bool:
    """Whether a line reports this: PSNR, use of codes, or a validation loss, but not that of a range of timesteps."""
    known = "loss", "loss_text", "loss_image", "psnr", "code_usage"
    return name.startswith("val/") and name.rpartition("/")[2] in known
