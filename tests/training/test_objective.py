"""Tests that the objective of a step does not depend on how rows are split into micro-batches and ranks."""

import subprocess
import sys
from pathlib import Path

import objective_run
import pytest
import torch
from small_run import ENVIRONMENT

from lit_transfusion.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def one_batch():
    moved, logged = objective_run.train("auto", 1, 1)
    assert all(change.abs().max() > 1e-4 for change in moved.values())
    return moved, logged


def assert_same(result, expected):
    for name, change in expected[0].items():
        torch.testing.assert_close(result[0][name], change, rtol=1e-5, atol=1e-6, msg=name)
    assert result[1] == pytest.approx(expected[1], rel=1e-5)
    assert {"train/loss", "train/loss_text", "train/loss_image", "train/grad_norm"} <= result[1].keys()


def test_rows_have_different_numbers_of_targets():
    """A mean of the means of micro-batches would therefore be another number."""
    tokenizer = Tokenizer.train(["a red circle", "two blue squares above"], 300)
    batches = objective_run.batches_of(objective_run.four_rows(tokenizer), 4, tokenizer)
    counts = [(len(batch.target_positions), len(batch.image_groups[0].learned)) for batch in batches]
    assert [images for _, images in counts] == [0, 1, 1, 0]
    texts = [text for text, _ in counts]
    assert len(set(texts)) == 4 and 0 in texts
    assert batches[0].step_counts.tolist() == [sum(texts), 2, 8]


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches(one_batch, micro_batches):
    assert_same(objective_run.train("auto", 1, micro_batches), one_batch)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks(one_batch, strategy, micro_batches, tmp_path):
    """The first rank has the only long text."""
    output = tmp_path / "result.pt"
    command = [sys.executable, objective_run.__file__, strategy, "2", str(micro_batches), str(output)]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(torch.load(output), one_batch)
