"""Held-out captions that are longer than a row: every command cuts them, and so do the sample grids of training."""

import csv
import json
import re

import pytest
import yaml
from PIL import Image

from lit_transfusion import cli

ROW = 40  # positions: BOS, EOS, 16 patches with BOI and EOI, and 20 for text
LONG = "a red circle on white paper beside " * 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with eight pictures whose captions do not fit into a row."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    with open(tmp_path / "pictures" / "metadata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption"])
        for number in range(8):
            Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
            table.writerow([f"{number}.png", f"{LONG} {number}"])
    return tmp_path


def write_config(folder, source, callback, **options):
    shown = {"every_n_steps": 1, "num_samples": 2, "num_inference_steps": 2} | options
    checkpoints = {"dirpath": "${trainer.default_root_dir}/checkpoints", "every_n_train_steps": 1, "save_last": "link"}
    config = {
        "base": str(cli.__file__).replace("lit_transfusion/cli.py", "configs/default.yaml"),
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "accelerator": "cpu",
            "max_steps": 2,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": checkpoints},
                {"class_path": callback, "init_args": shown},
                {"class_path": "WritePredictions"},
            ],
        },
        "model": {
            "size": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
            "patcher": {"class_path": "LinearPatcher", "init_args": {"patch_size": 4}},
        },
        "data": {"source": source, "image_size": 16, "sequence_length": ROW, "batch_size": 1, "vocab_size": 300},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return ["--config", "run.yaml"]


def captions_of(folder):
    path = str(folder / "pictures")
    return {"class_path": "ImageCaptions", "init_args": {"path": path, "val_fraction": 0.5}}


def test_training_prediction_and_evaluation_cut_held_out_captions(folder, capsys):
    config = write_config(folder, captions_of(folder), "ShowSamples")
    cli.main(["fit", *config])
    grids = {path.name for path in (folder / "run" / "samples").iterdir()}
    assert {"samples_000001.png", "samples_000002.png", "captions_000002.png"} <= grids
    cli.main(["predict", *config, "--ckpt_path", "last"])
    assert list((folder / "run" / "predictions").glob("drawn_*.png"))
    capsys.readouterr()
    few = ["--num_inference_steps", "1", "--num_examples", "2", "--output", "out"]
    metrics = ["--metrics", "ImageShare", "Perplexity", "DiffusionLoss"]
    cli.main(["evaluate", "--ckpt", "run/checkpoints/last.ckpt", *metrics, *few])
    assert re.search("2 of 2 captions .*cut", capsys.readouterr().out)
    (measured,) = json.loads((folder / "out" / "evaluation.json").read_text())["metrics"].values()
    assert {"image_share", "perplexity", "diffusion_loss"} <= measured.keys()


def test_sample_grids_of_edits_cut_held_out_instructions(folder):
    for number in range(8):
        Image.new("RGB", (16, 16), (0, 30 * number, 0)).save(folder / "pictures" / f"after_{number}.png")
    lines = [
        {"input_image": f"{number}.png", "instruction": f"{LONG} {number}", "edited_image": f"after_{number}.png"}
        for number in range(8)
    ]
    (folder / "pictures" / "metadata.csv").unlink()
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"class_path": "EditTriples", "init_args": {"path": str(folder / "pictures"), "val_fraction": 0.5}}
    cli.main(["fit", *write_config(folder, source, "ShowEdits"), "--data.sequence_length", "60"])
    assert {path.name for path in (folder / "run" / "samples").iterdir()} == {"edits_000001.png", "edits_000002.png"}


def test_a_typed_prompt_for_the_sample_grids_that_is_too_long_is_an_error_before_training(folder, capsys):
    config = write_config(folder, captions_of(folder), "ShowSamples", prompts=["a red circle", LONG])
    with pytest.raises(SystemExit) as caught:
        cli.main(["fit", *config])
    assert caught.value.code == 2 and not (folder / "run" / "checkpoints").exists()
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "ShowSamples.prompts" in message and "'a red circle on white paper" in message
    assert re.search(r"\d+ tokens", message) and f"room for {ROW - 1 - 18}" in message
