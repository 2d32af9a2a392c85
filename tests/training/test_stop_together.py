"""Ctrl-C of several processes is noted, agreed on after the step, and obeyed at once the second time."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from lit_transfusion.training.stop_together import StopTogether

TRAINER = SimpleNamespace(world_size=2, accumulate_grad_batches=2)


@pytest.fixture
def callback(tmp_path):
    """In training. (There is one process; that several agree is in test_ddp.py.)"""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    callback = StopTogether()
    callback.on_train_start(TRAINER, None)
    yield callback
    callback.on_train_end(TRAINER, None)
    dist.destroy_process_group()


def test_the_first_is_obeyed_after_the_step(callback):
    callback.on_train_batch_end(TRAINER, None, None, None, batch_idx=1)
    os.kill(os.getpid(), signal.SIGINT)
    callback.on_train_batch_end(TRAINER, None, None, None, batch_idx=2)  # gradients are still gathered
    with pytest.raises(KeyboardInterrupt):
        callback.on_train_batch_end(TRAINER, None, None, None, batch_idx=3)


def test_the_second_is_obeyed_at_once(callback):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_after_training_it_is_as_it_was_before(callback):
    callback.on_train_end(TRAINER, None)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_process_that_is_alone_stops_at_once():
    callback = StopTogether()
    callback.on_train_start(SimpleNamespace(world_size=1), None)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    callback.on_train_batch_end(TRAINER, None, None, None, batch_idx=1)
