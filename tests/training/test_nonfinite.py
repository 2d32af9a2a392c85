"""Tests of steps that are not finite: they end the run and write nothing, or are skipped, up to a limit."""

import math
from itertools import pairwise
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from small_run import SMALLEST_DATA, SMALLEST_MODEL, read

from lit_transfusion.cli import main
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline

CONFIGS = Path(__file__).parents[2] / "configs"


class Spoil(lightning.Callback):
    """Makes a picture or the gradient not finite, in the fourth step and in `more` steps after it."""

    def __init__(self, what: str, more: int = 0) -> None:
        self.what = what
        self.more = more

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.active = 3 <= trainer.global_step <= 3 + self.more
        if self.active and self.what == "picture":
            images = batch.image_groups[0].images
            (images if isinstance(images, torch.Tensor) else images.tensor)[0, 0, 0, 0] = math.nan

    def on_after_backward(self, trainer, pl_module):
        if self.active and self.what == "gradient":
            pl_module.net.head.weight.grad[0, 0] = math.inf


@pytest.fixture
def fit(tmp_path):
    """Runs `fit` in tmp_path/run, with a checkpoint after every second step."""

    def fit(what: str, *options: str, more: int = 0) -> Path:
        keeper = {"dirpath": str(tmp_path / "run" / "checkpoints"), "every_n_train_steps": 2, "save_last": "link"}
        callbacks = [
            {"class_path": "ModelCheckpoint", "init_args": keeper | {"save_on_exception": True}},
            {"class_path": f"{__name__}.Spoil", "init_args": {"what": what, "more": more}},
        ]
        config = {
            "base": str(CONFIGS / "default.yaml"),
            "trainer": {
                "default_root_dir": str(tmp_path / "run"),
                "accelerator": "cpu",
                "max_steps": 6,
                "log_every_n_steps": 1,
                "limit_val_batches": 0,
                "enable_progress_bar": False,
                "callbacks": callbacks,
            },
            "model": SMALLEST_MODEL,
            "data": SMALLEST_DATA,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        main(["fit", "--config", str(path), *options])
        return tmp_path / "run"

    return fit


@pytest.mark.parametrize(("what", "loss"), [("picture", "loss_image"), ("gradient", "grad_norm")])
def test_run_ends_and_its_last_checkpoint_does_not_change(fit, tmp_path, capsys, what, loss):
    with pytest.raises(SystemExit) as ended:
        fit(what)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "step 4" in message and loss in message and "model.skip_nonfinite" in message
    assert "Traceback" not in message
    assert ("example" in message) == (what == "picture")
    last = read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 2
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())
    (saved,) = (tmp_path / "run" / "nonfinite").iterdir()
    content = torch.load(saved, weights_only=True)
    assert content["step"] == 4 and not math.isfinite(content["values"][loss])
    if what == "picture":
        (batch,), (row,) = content["batches"], content["pieces"][0]
        assert (
            batch["image_groups"][0]["images"]["tensor"][0].isnan().any() and str(row[0][1]) in content["documents"][0]
        )


def test_weights_stay_finite_if_steps_may_be_skipped(fit):
    folder = fit("gradient", "--model.skip_nonfinite", "2", more=1)
    checkpoints = {c["global_step"]: c for c in map(read, (folder / "checkpoints").glob("*.ckpt"))}
    assert checkpoints[6]["skipped_steps"] == 2
    assert all(weight.isfinite().all() for weight in checkpoints[6]["state_dict"].values())


def test_run_ends_after_more_steps_than_may_be_skipped(fit, capsys):
    with pytest.raises(SystemExit):
        fit("gradient", "--model.skip_nonfinite", "1", more=1)
    assert "step 5" in capsys.readouterr().err


def test_skipped_step_changes_no_weight(make_module, make_batch, make_trainer, loader):
    """The moments and the weight decay of AdamW do not change them, either."""
    module = make_module(skip_nonfinite=1)
    weights = []

    class RecordWeights(lightning.Callback):
        def on_train_batch_end(self, *_):
            weights.append({name: weight.clone() for name, weight in module.net.state_dict().items()})

    batches = [make_batch(seed=seed) for seed in range(3)]
    batches[1].image_groups[0].images[0] = math.nan
    make_trainer(callbacks=[RecordWeights()]).fit(module, loader(*batches))
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(weights)]
    assert moved == [False, True]


def test_loading_a_model_whose_weights_are_not_finite_is_an_error(make_module, tmp_path):
    module = make_module()
    module.ema.head.weight.data[0, 0] = math.nan
    module.pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"head\.weight.*NaN"):
        Pipeline.from_pretrained(tmp_path / "model")
