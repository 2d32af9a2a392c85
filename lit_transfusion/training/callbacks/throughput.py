"""What training does per second, and what that takes."""

import sys
import time
from typing import Any

import lightning
import torch

from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.types import PackedBatch
from lit_transfusion.model.flops import Flops, peak_bf16


class Throughput(lightning.Callback):
    """Logs what training does per second on this device, over the steps since it was last written down.

    Tokens and patches without padding, images, milliseconds that a step waits for its data, the most memory so far, and
    the operations per second that could not be avoided (`model/flops.py`); under bf16 on a GPU whose peak is known,
    also their share of it (MFU). Validation, drawing samples and writing checkpoints are not counted as time.
    Also the share of the rows that is filled (`data/fill`) and, of a mix of sources, the share that each has had in the
    positions since the start of this process, or since the weights changed (`data/share_NAME`).
    """

    def __init__(self) -> None:
        self.flops: Flops | None = None
        self._restart()

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        if self.flops is None:  # before a net is shared out among processes
            self.flops = Flops.count(pl_module.net, pl_module.pipeline.latent_shape)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.waited = getattr(trainer.train_dataloader, "seconds", 0.0)
        self._restart()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: PackedBatch, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        lo, hi = pl_module.net.mask.intervals(batch.document_ids, batch.image_ids)
        self.steps += 1
        self.tokens += batch.lengths.sum()
        self.positions += batch.tokens.numel()
        self.images += len(batch.images)
        self.operations += self.flops.of_batch(lo, hi, batch.lengths, len(batch.target_positions), len(batch.images))
        last = (batch_idx + 1) % (trainer.log_every_n_steps * trainer.accumulate_grad_batches) == 0
        if last:
            self.operations = float(self.operations)  # on a GPU, waits until all steps are done
        self.seconds += time.perf_counter() - self.began
        if last:
            self._log(trainer, pl_module)
            self._restart()

    def _log(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        waited = getattr(trainer.train_dataloader, "seconds", 0.0) - self.waited
        self.waited += waited
        seconds = self.seconds + waited
        per_second = self.operations / seconds
        gpu = pl_module.device.type == "cuda"
        peak = peak_bf16(torch.cuda.get_device_name(pl_module.device)) if gpu else None
        values = {
            "tokens_per_second": float(self.tokens) / seconds,
            "images_per_second": self.images / seconds,
            "data_wait_ms": 1e3 * waited / self.steps,
            "gflops_per_second": per_second / 1e9,
        }
        memory = torch.cuda.max_memory_allocated(pl_module.device) if gpu else peak_rss()
        if memory is not None:
            values["peak_memory_gb"] = memory / 1e9
        if peak and trainer.precision == "bf16-mixed":
            values["mfu"] = per_second / peak
        for name, value in values.items():
            pl_module.log(f"throughput/{name}", value, prog_bar=name == "images_per_second")
        pl_module.log("data/fill", float(self.tokens) / self.positions)
        if isinstance(trainer.train_dataloader, PackedLoader):
            for name, share in trainer.train_dataloader.shares().items():
                pl_module.log(f"data/share_{name}", share)

    def _restart(self) -> None:
        self.seconds = self.steps = self.tokens = self.positions = self.images = self.operations = 0


def peak_rss() -> int | None:
    """Bytes of memory that this process has held at most. (macOS counts bytes, Linux kilobytes, Windows nothing.)"""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
