"""Tests that the Throughput callback logs what was trained."""

import time

import lightning
import pytest
import torch

from lit_transfusion.model.flops import Flops
from lit_transfusion.training.callbacks import Throughput


class Nap(lightning.Callback):
    """Takes as long as drawing samples may take."""

    def on_train_batch_end(self, *_):
        time.sleep(0.2)


class Slow(torch.utils.data.DataLoader):
    """A slow loader that counts the seconds that training waits for it."""

    seconds = 0.0

    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.05)
            self.seconds += 0.05
            yield batch


def test_counts_only_training(make_module, make_batch, make_trainer):
    batches = [make_batch("mixed", seed) for seed in range(4)]
    module = make_module()
    trainer = make_trainer(callbacks=[Throughput(), Nap()], log_every_n_steps=2)
    began = time.perf_counter()
    trainer.fit(module, Slow(batches, batch_size=None))
    wall = time.perf_counter() - began
    logged = {name.removeprefix("throughput/"): float(value) for name, value in trainer.callback_metrics.items()}

    window = batches[2:]  # the steps since the last log
    tokens, images = sum(int(b.lengths.sum()) for b in window), sum(b.num_images for b in window)
    seconds = tokens / logged["tokens_per_second"]
    assert 0 < logged["data/fill"] < 1 and logged["data/fill"] == pytest.approx(
        tokens / sum(b.tokens.numel() for b in window)
    )
    assert logged["images_per_second"] == pytest.approx(images / seconds, rel=1e-4)
    assert 0.1 < seconds < wall - 4 * 0.2  # includes the wait for data, but not the naps
    assert logged["data_wait_ms"] == pytest.approx(50, rel=0.01)
    flops = Flops.count(module.net)
    operations = 0
    for batch in window:
        lo, hi = module.net.mask.intervals(batch.document_ids, batch.image_ids)
        pairs = sum((hi - lo)[row, :length].sum() for row, length in enumerate(batch.lengths))
        targets = (batch.labels != -100).sum()
        operations += flops.training_step(
            batch.lengths.sum(), pairs, targets, batch.num_images * flops.image((3, 4, 4))
        )
    assert logged["gflops_per_second"] == pytest.approx(float(operations) / seconds / 1e9, rel=1e-4)
    assert 0.05 < logged["peak_memory_gb"] < 64
    assert "mfu" not in logged  # only on a GPU


def test_log_interval_counts_steps_if_gradients_are_accumulated(make_module, make_batch, make_trainer):
    batches = [make_batch("mixed", seed) for seed in range(4)]
    trainer = make_trainer(callbacks=[Throughput()], log_every_n_steps=2, accumulate_grad_batches=2)
    trainer.fit(make_module(), Slow(batches, batch_size=None))
    metrics = trainer.callback_metrics
    seconds = float(metrics["throughput/data_wait_ms"]) * 4 / 1e3
    assert seconds == pytest.approx(4 * 0.05, rel=0.01)
