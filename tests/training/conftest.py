"""Shared fixtures of the training tests: the smallest complete module, batches, trainers and configs."""

from functools import partial
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from forked_fit import ForkedFit
from small_run import REPOSITORY, SMALLEST_DATA, SMALLEST_MODEL

from lit_transfusion.data.grammar import caption_first, image_first, unconditional
from lit_transfusion.data.packing import collate, flatten
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import Document, ImageSegment, PackedBatch, TextSegment
from lit_transfusion.diffusion import DDPM
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig
from lit_transfusion.training.lit_module import LitTransfusion
from lit_transfusion.training.optim import WarmupCosine

SIDE, PATCH = 4, 2
SHAPE = (3, SIDE, SIDE)
TEXTS = ["a red circle", "two blue squares"] * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture
def make_module(tokenizer):
    def make_module(*, dim=16, patch_size=PATCH, noise=None, patcher=LinearPatcher, lr=1e-2, **options):
        torch.manual_seed(0)
        options = {
            "tokenizer": tokenizer,
            "optimizer": partial(torch.optim.AdamW, lr=lr),
            "scheduler": partial(WarmupCosine, warmup_steps=2, total_steps=20, final_lr=lr / 20),
            "size": TransformerConfig(dim=dim, n_layers=1, n_heads=2, hidden_dim=2 * dim),
        } | options
        return LitTransfusion(
            codec=Pixels(),
            image_size=SIDE,
            patcher=patcher(3, dim, patch_size),
            mask=Bidirectional(),
            noise=noise or DDPM(),
            **options,
        )

    return make_module


@pytest.fixture
def make_batch(tokenizer):
    def make_batch(kind: str = "mixed", seed: int = 0, length: int = 48, max_timestep: int = 1_000_000) -> PackedBatch:
        """Make two rows of the kind "text", "image" (text without targets), or "mixed"."""
        generator = torch.Generator().manual_seed(seed)
        words = tokenizer.encode(TEXTS[seed % 2])

        def image():
            return torch.rand(SHAPE, generator=generator) * 2 - 1

        text = Document((TextSegment((tokenizer.bos, *words, tokenizer.eos)),))
        both = Document((*image_first(words, image(), tokenizer, max_timestep).segments, ImageSegment(image())))
        rows = {
            "text": [[text], [text, text]],
            "image": [[unconditional(image(), tokenizer)], [unconditional(image(), tokenizer)]],
            "mixed": [[caption_first(words, image(), tokenizer), text], [both]],
        }[kind]
        patches = (SIDE // PATCH) ** 2
        flat = [[flatten(document, tokenizer, lambda image: patches) for document in row] for row in rows]
        return collate(flat, length, tokenizer.pad, SHAPE)

    return make_batch


@pytest.fixture
def make_trainer(tmp_path):
    def make_trainer(**options) -> lightning.Trainer:
        options = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        } | options
        return lightning.Trainer(**options)

    return make_trainer


@pytest.fixture
def loader():
    def loader(*batches: PackedBatch) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(list(batches), batch_size=None)

    return loader


@pytest.fixture
def make_config(tmp_path):
    """Writes the config of the smallest run on two processes in `tmp_path / name`, and returns its path."""

    def make_config(name: str, **trainer) -> Path:
        checkpoints = {"dirpath": "${trainer.default_root_dir}/checkpoints", "every_n_train_steps": 1}
        checkpoints |= {"save_top_k": -1, "save_last": "link", "save_on_exception": True}
        samples = {"every_n_steps": 1, "num_samples": 2, "num_inference_steps": 2, "max_new_tokens": 2}
        content = {
            "base": str(REPOSITORY / "configs" / "default.yaml"),
            "trainer": {
                "default_root_dir": str(tmp_path / name),
                "accelerator": "cpu",
                "strategy": "ddp",
                "devices": 2,
                "max_steps": 3,
                "val_check_interval": 2,
                "limit_val_batches": 1,
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                "callbacks": [
                    {"class_path": "ModelCheckpoint", "init_args": checkpoints},
                    {"class_path": "ShowSamples", "init_args": samples},
                    {"class_path": "Throughput"},
                    {"class_path": "RunDirectory"},
                ],
            }
            | trainer,
            "model": SMALLEST_MODEL,
            "data": SMALLEST_DATA,
        }
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump(content))
        return config

    return make_config


@pytest.fixture
def fit(make_config, tmp_path):
    """Runs `fit` on two processes in `tmp_path / name`, and returns this folder."""

    def fit(name: str, *arguments: str, ranks: int = 2) -> Path:
        words = ["--config", str(make_config(name)), "--trainer.devices", str(ranks), *arguments]
        assert ForkedFit(words, tmp_path, ranks).wait(timeout=180) == 0, (tmp_path / "errors").read_text()[-3000:]
        return tmp_path / name

    return fit
