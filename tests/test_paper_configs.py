"""The paper's configs have the paper's settings, and train."""

import json
from pathlib import Path

import pytest
import yaml

from lit_transfusion import cli
from lit_transfusion.model import SIZES

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
PATHS = [path for path in sorted(FOLDER.glob("*.yaml")) if path.name != "base.yaml"]


def whole(path: Path, capsys) -> dict:
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", str(path), "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_settings_are_those_of_the_paper(path, capsys):
    config = whole(path, capsys)
    model, data, trainer = config["model"], config["data"], config["trainer"]
    long = path.stem == "7B_2T"
    rows = data["batch_size"] * trainer["devices"] * trainer["num_nodes"] * trainer["accumulate_grad_batches"]
    assert (rows * data["sequence_length"], trainer["max_steps"]) == ((2**22, 500_000) if long else (2**21, 250_000))
    size = SIZES[path.stem.partition("_")[0]]
    assert [model["size"][key] for key in ("dim", "n_layers", "n_heads")] == [size.dim, size.n_layers, size.n_heads]
    assert data["sequence_length"] == 4096 and data["vocab_size"] == 32_000 and trainer["gradient_clip_val"] == 1.0
    optimizer, scheduler = model["optimizer"]["init_args"], model["scheduler"]["init_args"]
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"]) == (3e-4, [0.9, 0.95], 1e-8)
    assert optimizer["weight_decay"] == 0.1 and model["optimizer"]["class_path"].endswith("AdamW")
    assert (scheduler["warmup_steps"], scheduler["final_lr"]) == (4000, 1.5e-5)
    assert scheduler["total_steps"] == trainer["max_steps"] and model["scheduler"]["class_path"].endswith(
        "WarmupCosine"
    )
    assert model["image_loss_weight"] == 5.0 and model["ema_decay"] is None
    assert model["patcher"]["class_path"].endswith("UNetPatcher") and model["patcher"]["init_args"]["patch_size"] == 2
    assert model["mask"]["class_path"].endswith("Bidirectional")
    noise = model["noise"]["init_args"]
    assert (noise["num_train_timesteps"], noise["prediction_type"]) == (1000, "epsilon")
    assert data["image_size"] == 256 and data["recipe"]["caption_first"] == 0.8
    assert data["recipe"]["image_first_max_timestep"] is None
    mix = data["source"]["init_args"]
    assert mix["weights"] == {"images": 0.5, "text": 0.5} and mix["sources"].keys() == {"images", "text"}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_config_trains_two_steps(path, tmp_path, save_vae, monkeypatch):
    """Smaller are the widths, the depth and the data; and it is one process on a CPU."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "some.txt").write_text("A red square is beside a blue circle. " * 200)
    text = {"class_path": "TextCorpus", "init_args": {"path": "text", "documents": "block", "val_fraction": 0}}
    overlay = {
        "base": str(path),
        "trainer": {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "precision": "32-true", "max_steps": 2},
        "model": {
            "size": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
            "patcher": {"init_args": {"channels": 16, "num_res_blocks": 1, "head_dim": 8}},
        },
        "data": {
            "source": {"init_args": {"sources": {"images": "Shapes", "text": text}}},
            "codec": {"init_args": {"path": save_vae(tmp_path / "vae")}},
            "image_size": 32,
            "sequence_length": 128,
            "vocab_size": 300,
            "num_workers": 0,
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(overlay))
    cli.main(["fit", "--config", "small.yaml", "--trainer.default_root_dir", "run"])
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["step"] == 2
