"""The bar of a run."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar


class RunProgress(RichProgressBar):
    """Lightning's, for a run that is one long epoch: the two losses and the pace, and no epoch number.

    Args:
        refresh_rate: Batches between two refreshments; at each one, a GPU is waited for.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: Any) -> dict[str, Any]:
        short = {"train/loss_text": "text", "train/loss_image": "image", "throughput/images_per_second": "images/s"}
        metrics = super().get_metrics(trainer, pl_module)
        return {short[name]: value for name, value in metrics.items() if name in short}

    @property
    def total_train_batches(self) -> int | float:
        """Lightning's own counts the steps that are left, which accumulated or continued runs overtake."""
        return self.trainer.num_training_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"
