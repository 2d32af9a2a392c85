"""The command train_codec: what it writes, resuming, the average, several processes, and errors."""

import csv
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from lit_transfusion import cli
from lit_transfusion.autoencoders import VQ
from lit_transfusion.config import lightning as lightning_cli
from lit_transfusion.errors import InputError

CODES = '{"class_path": "VQ", "init_args": {"codes": 16, "code_dim": 2}}'


def checkpoint(folder, step):
    (path,) = (folder / "checkpoints").glob(f"*step={step}.ckpt")
    return torch.load(path, weights_only=True)


def assert_equal(first, second, path=""):
    """Compare nested containers bit by bit."""
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_equal(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{path}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second, path


def rows_of(folder):
    rows = []
    for path in sorted(folder.glob("metrics/version_*/metrics.csv")):
        with path.open() as file:
            rows += list(csv.DictReader(file))
    return rows


def test_run_writes_a_codec_that_diffusers_and_a_run_load(train, capsys, monkeypatch):
    from diffusers import AutoencoderKL

    from lit_transfusion.config.lightning import parts_of

    folder = train("run")
    printed = capsys.readouterr().out
    assert "Step 4 is done: psnr " in printed
    line = "data: {codec: {class_path: VAE, init_args: {path: run/codec}}}"
    assert line in printed
    model = AutoencoderKL.from_pretrained(folder / "codec")
    assert model.config.scaling_factor > 0 and model.config.sample_size == 16
    assert sorted(path.name for path in (folder / "codec").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "measured.json",
    ]
    assert json.loads((folder / "codec" / "measured.json").read_text())["step"] == 4
    assert len(list((folder / "samples").glob("reconstructions_*.png"))) == 2
    assert (folder / "config.yaml").exists() and not list(folder.glob(".codec*"))
    rows = rows_of(folder)
    columns = {name for row in rows for name, value in row.items() if value}
    assert {"train/loss_l1", "train/loss_kl", "train/loss_gan", "train/loss_discriminator"} <= columns
    assert {"train/gan_weight", "val/psnr", "val/ssim", "val/latent_mean/0", "val/latent_std/2"} <= columns
    assert [row["step"] for row in rows if row.get("train/loss_gan")] == ["2", "3"]  # from its start step

    monkeypatch.chdir(folder.parent)
    Path("fit.yaml").write_text(line + "\n")
    words = "--data.source Shapes --data.image_size 16 --model.patcher LinearPatcher --data.sequence_length 128"
    words += " --model.mask Causal --model.noise DDPM --model.optimizer AdamW --model.scheduler ConstantLR"
    parts = parts_of(["--config", "fit.yaml", *words.split()])
    net = parts.model.net
    assert net.patcher.latent_channels == 3 and parts.datamodule.codec.downscale == 2
    pictures = torch.rand(1, 3, 16, 16)
    assert torch.equal(parts.datamodule.codec.moments(pictures), model.encode(pictures).latent_dist.parameters)


@pytest.mark.parametrize(
    "bottleneck",
    [pytest.param("KL", marks=pytest.mark.slow, id="KL"), pytest.param(yaml.safe_load(CODES), id="VQ")],
)
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(train, bottleneck):
    """It stops after step 1 of 4, before the GAN starts."""
    whole = train("whole", bottleneck=bottleneck)
    options = "--model.scheduler.total_steps", "4"
    train("parts", "--trainer.max_steps", "1", *options, bottleneck=bottleneck)
    parts = train("parts", "--ckpt_path", "last", *options, bottleneck=bottleneck)
    first, second = checkpoint(whole, 4), checkpoint(parts, 4)
    for key in ("state_dict", "optimizer_states", "loops", "global_step"):
        if key == "loops":
            assert_equal(*(c[key]["fit_loop"]["state_dict"] for c in (first, second)))
        else:
            assert_equal(first[key], second[key], key)
    weights = [(folder / "codec" / "diffusion_pytorch_model.safetensors").read_bytes() for folder in (whole, parts)]
    assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def vq_run(train_in, tmp_path_factory):
    """A run with codes, whose GAN starts after step 3 of 4."""
    folder = tmp_path_factory.mktemp("vq")
    return train_in(folder, "run", "--model.ema_decay", "0.5", bottleneck=yaml.safe_load(CODES), gan_start=3)


def test_discriminator_is_unchanged_before_its_start(vq_run):
    states = [checkpoint(vq_run, step)["state_dict"] for step in (1, 3, 4)]
    name = "gan.layers.0.weight"
    assert torch.equal(states[0][name], states[1][name]) and not torch.equal(states[1][name], states[2][name])
    name = "net.encoder.conv_in.weight"
    assert not torch.equal(states[0][name], states[1][name])


def test_average_follows_the_weights_and_the_codebook(vq_run):
    states = [checkpoint(vq_run, step)["state_dict"] for step in (1, 2, 3)]
    for name in ("encoder.conv_in.weight", "quantize.embedding.weight"):
        for step, (before, after) in enumerate(pairwise(states), 2):
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * before[f"ema.{name}"] + (1 - decay) * after[f"net.{name}"]
            torch.testing.assert_close(after[f"ema.{name}"], expected)
    assert not any("perceptual" in name or "features" in name for name in states[0])


@pytest.mark.slow
def test_run_without_held_out_pictures(train, make_pictures, tmp_path):
    make_pictures(tmp_path / "pictures", 8)
    source = '{"class_path": "ImageCaptions", "init_args": {"path": "pictures", "val_fraction": 0}}'
    folder = train("run", "--data.source", source)
    assert json.loads((folder / "codec" / "measured.json").read_text())["step"] == 4


@pytest.mark.slow
def test_second_run_moves_the_first_aside(train):
    folder = train("run", "--trainer.max_steps", "1")
    train("run", "--trainer.max_steps", "1")
    assert (folder.with_name("run.1") / "codec" / "config.json").exists()


@pytest.mark.slow
def test_bf16(train, monkeypatch):
    monkeypatch.setattr(lightning_cli, "has_bf16", lambda device: True)  # slow, but correct
    folder = train("run", "--trainer.precision", "bf16-mixed", bottleneck=yaml.safe_load(CODES))
    assert checkpoint(folder, 4)["state_dict"]["net.encoder.conv_in.weight"].dtype == torch.float32


# Errors


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--data.image_size", "17"], ["data.image_size 17", "multiple of 2", "use 16 or 18"]),
        (["--model.block_out_channels", "[4,7]"], ["model.block_out_channels [4, 7]", "norm_num_groups 2"]),
        (["--model.gan.layers", "3"], ["model.gan.layers 3", "24 pixels", "data.image_size is 16"]),
        (["--data.batch_size", "0"], ["data.batch_size 0"]),
        (["--model.bottleneck", "RVQ"], ["RVQ", "known: FSQ, KL, VQ"]),
        (["--model.perceptual", "VGG"], ["VGG", "known: EfficientNetLite0Features, LPIPS"]),
        (["--trainer.precision", "bf16-true"], ["trainer.precision bf16-true is not supported"]),
        (["--trainer.strategy", "fsdp2"], ["trainer.strategy fsdp2", "use ddp"]),
        (["--ckpt_path", "last"], ["no checkpoint in run/checkpoints"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_error_is_one_line_with_key_and_value(train, capsys, words, texts):
    with pytest.raises(SystemExit) as caught:
        train("run", *words)
    assert caught.value.code == 2
    message = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert message.startswith("error: ")
    for text in texts:
        assert text in message


def test_too_few_latents_for_kmeans_is_one_line(train, capsys):
    with pytest.raises(SystemExit):
        train("run", bottleneck={"class_path": "VQ", "init_args": {"codes": 257}})
    assert "codes 257 is too large for kmeans_start: the first batch has 256 latents" in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoints_of_other_runs_are_an_error(train, capsys, tmp_path):
    folder = train("run", "--trainer.max_steps", "1")
    with pytest.raises(SystemExit):
        train("run", "--ckpt_path", "last", "--model.latent_channels", "4")
    assert "the checkpoint is of another autoencoder" in capsys.readouterr().err
    last = folder / "checkpoints" / "last.ckpt"
    with pytest.raises(SystemExit):
        cli.main(["generate", "--ckpt", str(last), "--prompt", "a"])
    assert "is not a checkpoint of lit_transfusion: it has no 'lit_transfusion' entry" in capsys.readouterr().err
    torch.save({"state_dict": {"net.a": torch.zeros(1)}, "lit_transfusion": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit):
        train("run", "--ckpt_path", "other.ckpt")
    assert "it has no 'lit_transfusion_autoencoder' entry" in capsys.readouterr().err


# Several processes


@pytest.mark.slow
def test_two_processes_train_one_codec(train, tmp_path):
    """Each process runs the whole command. The codes are averages over the latents of both."""
    train("one", "--trainer.max_steps", "1", bottleneck=yaml.safe_load(CODES))  # writes codec.yaml
    words = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.default_root_dir", "two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", "lit_transfusion", "train_codec", "--config", "codec.yaml", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    state = checkpoint(tmp_path / "two", 4)
    ranks = state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["ranks"]
    assert [rank["streams"][0]["used"] for rank in ranks] != [0, 0] and len(ranks) == 2
    weights = state["state_dict"]
    assert torch.equal(weights["net.quantize.embedding.weight"], weights["bottleneck.codebook._codebook.embed"][0])
    assert weights["bottleneck.codebook._codebook.cluster_size"].sum() > 1.5 * 4 * 64  # of 2 x 4 x 64 latents
    assert (tmp_path / "two" / "codec" / "config.json").exists()


def test_architecture_without_levels_is_an_error(make_module):
    with pytest.raises(InputError, match=r"model\.block_out_channels is empty"):
        make_module(block_out_channels=[])


def test_library_synchronises_its_codebook_only_with_several_processes():
    bottleneck = VQ(codes=4, code_dim=2)
    codebook = bottleneck.codebook
    bottleneck.distribute()
    assert bottleneck.codebook is codebook and not codebook._codebook.use_ddp
