"""The loop of docs/plain_loop.py against Lightning's."""

import csv
import runpy
from pathlib import Path

import pytest

from lit_transfusion.cli import main

REPOSITORY = Path(__file__).parents[1]
STEPS = 3


@pytest.mark.slow
def test_the_plain_loop_has_the_losses_of_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = runpy.run_path(str(REPOSITORY / "docs" / "plain_loop.py"))["train"]
    length = train.__globals__["STEPS"]
    options = {"strategy": "auto", "devices": 1, "max_steps": STEPS, "log_every_n_steps": 1, "default_root_dir": "run"}
    words = [word for key, value in options.items() for word in (f"--trainer.{key}", str(value))]
    main(["fit", "--config", "quickstart", *words, "--model.scheduler.total_steps", str(length)])
    with open("run/metrics/version_0/metrics.csv", newline="") as file:
        logged = [(row["train/loss_text"], row["train/loss_image"]) for row in csv.DictReader(file)]
    expected = [tuple(map(float, row)) for row in logged if all(row)]
    assert len(expected) == STEPS and train(STEPS) == expected
