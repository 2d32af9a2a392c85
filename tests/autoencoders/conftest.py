"""A small autoencoder, and the command that trains it on drawn shapes."""

import contextlib
import functools
from pathlib import Path

import pytest
import torch
import yaml

SMALLEST = {
    "block_out_channels": [4, 8],  # halves the sides once
    "norm_num_groups": 2,
    "latent_channels": 3,
    "attention": False,
}


@pytest.fixture(scope="session")
def make_module():
    """Make a LitAutoencoder for pictures of 16 × 16 pixels, always with the same weights."""
    from lit_transfusion.autoencoders import KL, LitAutoencoder
    from lit_transfusion.training.optim import WarmupCosine

    def make_module(bottleneck=None, image_size=16, **changes):
        torch.manual_seed(0)
        bottleneck = KL() if bottleneck is None else bottleneck
        optimizer, scheduler = torch.optim.AdamW, functools.partial(WarmupCosine, total_steps=10)
        return LitAutoencoder(image_size, bottleneck, optimizer, scheduler, **{**SMALLEST, **changes})

    return make_module


@pytest.fixture(scope="session")
def pictures():
    """Pictures (4, 3, 16, 16) in [-1, 1]."""
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="session")
def train_in():
    """Run `train_codec` in a folder, with changes to the smallest config, and return the folder of the run."""
    from lit_transfusion import cli

    def train_in(working_directory, name, *words, bottleneck="KL", gan_start=2):
        config = {
            "trainer": {
                "default_root_dir": name,
                "accelerator": "cpu",
                "devices": 1,
                "max_steps": 4,
                "max_epochs": -1,
                "limit_train_batches": "${trainer.max_steps}",
                "val_check_interval": 2,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "gradient_clip_val": 1.0,
                "use_distributed_sampler": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "logger": {
                    "class_path": "CSVLogger",
                    "init_args": {"save_dir": "${trainer.default_root_dir}", "name": "metrics"},
                },
                "callbacks": [
                    {
                        "class_path": "ModelCheckpoint",
                        "init_args": {
                            "dirpath": "${trainer.default_root_dir}/checkpoints",
                            "every_n_train_steps": 1,
                            "save_top_k": -1,
                            "save_last": "link",
                            "enable_version_counter": False,
                        },
                    },
                    "CodecFolder",
                    {"class_path": "ShowReconstructions", "init_args": {"num_pictures": 2, "every_n_steps": 2}},
                ],
            },
            "model": {
                **SMALLEST,
                "bottleneck": bottleneck,
                "gan": {"class_path": "PatchGAN", "init_args": {"start_step": gan_start, "channels": 4, "layers": 1}},
                "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01}},
                "scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 2, "total_steps": 4}},
            },
            "data": {
                "source": {"class_path": "Shapes", "init_args": {"num_examples": 20, "num_val_examples": 4}},
                "image_size": 16,
                "batch_size": 4,
            },
        }
        with contextlib.chdir(working_directory):
            Path("codec.yaml").write_text(yaml.safe_dump(config))
            cli.main(["train_codec", "--config", "codec.yaml", *words])
        return working_directory / name

    return train_in


@pytest.fixture
def train(train_in, tmp_path):
    """`train_in`, in the folder of the test."""
    return functools.partial(train_in, tmp_path)
