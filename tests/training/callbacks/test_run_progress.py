"""Tests of the progress lines of a run whose standard error is not a terminal."""

import re
import time

import lightning
import pytest

from lit_transfusion.progress import Pace
from lit_transfusion.training.callbacks import RunProgress, Throughput
from lit_transfusion.training.callbacks import progress as module


class Pause(lightning.Callback):
    """Makes the run longer than half a second, the minimum between two lines."""

    def on_train_batch_start(self, trainer, *_):
        time.sleep(0.6 * (trainer.global_step == 2))


@pytest.fixture
def lines_of(make_module, make_batch, make_trainer, loader, monkeypatch, capsys):
    """Runs four steps with a line due at any time, and returns the lines."""
    monkeypatch.setattr(Pace, "due", True)
    monkeypatch.setattr(module, "SECONDS", 0.0)

    def lines_of(kind: str = "mixed", **options) -> list[str]:
        callbacks = [Throughput(), Pause(), RunProgress()]
        options = {"callbacks": callbacks, "enable_progress_bar": True, "log_every_n_steps": 1, **options}
        trainer = make_trainer(max_steps=4, max_epochs=-1, **options)
        batches = [make_batch(kind, seed) for seed in range(2)]
        trainer.fit(make_module(), loader(*batches), loader(batches[0]))
        return [line for line in capsys.readouterr().err.splitlines() if "step" in line]

    return lines_of


def test_lines_have_steps_losses_rate_and_time(lines_of):
    lines = lines_of(val_check_interval=2, check_val_every_n_epoch=None)
    (last,) = [line for line in lines if line.startswith("training: 4 of 4 steps")]
    number = r"\d+(\.\d+)?(e[+-]\d+)?"
    assert re.search(rf"steps, text {number}, image {number}, {number} images/s, {number} steps/s, in \d+ s$", last)
    validations = [line for line in lines if line.startswith("validation")]
    assert [re.match(r"validation at step (\d): ", line)[1] for line in validations] == ["2", "4"]
    for name in ("loss", "loss_text", "loss_image"):
        assert all(re.search(rf"[ ,]val/{name} {number}(,|$)", line) for line in validations), validations


def test_a_run_on_text_alone_has_tokens_per_second(lines_of):
    *_, last = lines_of("text")
    assert "tokens/s" in last and "image" not in last
