"""The callback that writes the results of `predict`."""

import logging
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_only

from lit_transfusion.generation.pictures import captioned_grid, save

log = logging.getLogger(__name__)


class WritePredictions(BasePredictionWriter):
    """Writes the results of `predict` to `predictions/` in the run directory.

    Each batch has a grid of drawn pictures, and a grid of pictures with written captions.
    """

    def __init__(self) -> None:
        super().__init__("batch")

    @rank_zero_only  # all ranks predict the same
    def write_on_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, prediction: Any, indices: Any, batch: Any, batch_idx: int, *_
    ) -> None:
        folder = Path(trainer.default_root_dir) / "predictions"
        save(captioned_grid(prediction.drawn, batch.captions), folder / f"drawn_{batch_idx:04d}.png")
        save(captioned_grid(batch.images, prediction.written), folder / f"written_{batch_idx:04d}.png")

    @rank_zero_only
    def on_predict_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        log.info("drawn and written: %s", Path(trainer.default_root_dir) / "predictions")
