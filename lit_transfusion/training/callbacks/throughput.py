"""The callback that logs the speed, memory and FLOP/s of training."""

import sys
import time
from typing import Any

import lightning
import torch

from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.types import PackedBatch
from lit_transfusion.model.flops import Flops, peak_bf16
from lit_transfusion.training.batch_flops import batch_flops


class Throughput(lightning.Callback):
    """Logs the throughput of training on this device, over the steps since the last log.

    It logs tokens and patches (without padding) and images per second, the time in milliseconds that a step waits for
    data, the peak memory, and model FLOP/s (minimum FLOPs, see `model/flops.py`). With bf16 on a GPU whose peak is
    known it also logs their ratio to the peak (MFU). Validation, drawing samples and writing checkpoints are not
    included in the time.

    It also logs the share of the rows that is not padding (`data/fill`) and, for a mix of sources, the share of each in
    the positions since this process started or the weights changed (`data/share_NAME`).
    """

    def __init__(self) -> None:
        self.flops: Flops | None = None
        self._restart()

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        if self.flops is None:  # before a net is sharded
            self.flops = Flops.count(pl_module.net)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.waited = getattr(trainer.train_dataloader, "seconds", 0.0)
        self._restart()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: PackedBatch, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        self.steps += 1
        self.tokens += batch.lengths.sum()
        self.positions += batch.tokens.numel()
        self.images += batch.num_images
        self.operations += batch_flops(self.flops, pl_module.net.mask, batch, pl_module.codec)
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
    """Return the peak memory of this process in bytes. (macOS reports bytes, Linux kilobytes, Windows nothing.)"""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
