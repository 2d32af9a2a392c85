"""A VQ codec that `train_codec` wrote, in a run whose images are its codes, and in every command after it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lit_transfusion import cli
from lit_transfusion.generation.pipeline import Pipeline

REPOSITORY = Path(__file__).parents[2]
QUICK = ["--num_inference_steps", "2"]


@pytest.fixture
def codec(train_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bottleneck = {"class_path": "VQ", "init_args": {"codes": 16, "code_dim": 2}}
    return train_in(tmp_path, "codec_run", bottleneck=bottleneck) / "codec"


def config(codec, **data):
    """The smallest run with the block of configs/chameleon.yaml."""
    chameleon = yaml.safe_load((REPOSITORY / "configs" / "chameleon.yaml").read_text())
    model = chameleon["model"] | {"size": {"dim": 16, "n_layers": 1, "n_heads": 2, **chameleon["model"]["size"]}}
    trainer = {"default_root_dir": "run", "max_steps": 3, "val_check_interval": 2, "limit_val_batches": 1}
    trainer |= {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "enable_progress_bar": False}
    source = {"class_path": "Shapes", "init_args": {"num_examples": 20, "num_val_examples": 4}}
    sizes = {"image_size": 16, "sequence_length": 160, "batch_size": 1, "vocab_size": 300}
    return {
        "base": str(REPOSITORY / "configs" / "default.yaml"),
        "trainer": trainer,
        "model": model,
        "data": {"source": source, "codec": {"class_path": "VQ", "init_args": {"path": str(codec)}}, **sizes, **data},
    }


@pytest.mark.slow
def test_every_command_works(codec, capsys):
    Path("chameleon.yaml").write_text(yaml.safe_dump(config(codec)))
    cli.main(["fit", "--config", "chameleon.yaml"])
    ckpt = "run/checkpoints/last.ckpt"
    pipeline = Pipeline.from_pretrained(ckpt)
    assert pipeline.net.head.out_features == pipeline.tokenizer.vocab_size + 16
    assert pipeline.patches_per_image == 64 and pipeline.net.transformer.config.qk_norm
    rows = Path("run/metrics/version_0/metrics.csv").read_text()
    assert all(name in rows for name in ("train/loss_image", "train/loss_z", "val/loss", "val/loss_image"))
    again = ["--config", "run/config.yaml", "--ckpt_path", "last"]
    for command in ("validate", "test", "predict"):
        cli.main([command, *again, "--trainer.limit_predict_batches", "1"])
    cli.main(["fit", *again, "--trainer.max_steps", "4"])

    cli.main(["export", "--ckpt", ckpt, "--output", "model"])
    cli.main(["generate", "--ckpt", ckpt, "--prompt", "a red circle", "--output", "a.png"])
    cli.main(["generate", "--ckpt", "model", "--prompt", "a red circle", "--output", "b.png"])
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    cli.main(["generate", "--ckpt", "model", "--image", "a.png", "--max_new_tokens", "3"])
    (wide,) = pipeline.generate("a", images="forced", size="24x16", guidance_scale=1, image_temperature=0)
    assert wide.size == (24, 16)
    cli.main(["evaluate", "--ckpt", ckpt, "--num_examples", "4", "--output", "scores", *QUICK])
    result = json.loads(Path("scores/evaluation.json").read_text())
    assert "DiffusionLoss" in result["skipped"] and "perplexity" in result["metrics"]["3"]
    prompts = [{"tag": "single_object", "include": [], "prompt": prompt} for prompt in ("a circle", "a cross")]
    Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    cli.main(
        [
            "draw_benchmark",
            "--ckpt",
            "model",
            "--num_samples",
            "1",
            "--prompts",
            "prompts.jsonl",
            "--output",
            "drawn",
            *QUICK,
        ]
    )
    assert len(list(Path("drawn").rglob("*.png"))) >= 2


@pytest.mark.slow
def test_prepared_codes_train_like_the_pictures(codec):
    """The codes of a shard are those that training makes of the pixels, so the losses are equal."""
    Path("pictures").mkdir()
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(f"picture {number}")
    vq = ["--codec", "VQ", "--codec.path", str(codec)]
    cli.main(["prepare", "--input", "pictures", "--output", "shards", "--image_size", "16", *vq, "--num_workers", "0"])
    losses = []
    for latents in (True, False):
        source = {"class_path": "Shards", "init_args": {"path": "shards", "val_fraction": 0.0, "latents": latents}}
        content = config(codec, source=source)
        content["trainer"] |= {"default_root_dir": f"run_{latents}", "limit_val_batches": 0}
        Path("shards.yaml").write_text(yaml.safe_dump(content))
        cli.main(["fit", "--config", "shards.yaml"])
        weights = torch.load(f"run_{latents}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        losses.append(weights["net.head.weight"])
    torch.testing.assert_close(*losses)
