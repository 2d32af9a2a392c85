"""Fixtures of the tests of `data` and `prepare`."""

import numpy as np
import pytest
from PIL import Image

from lit_transfusion.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red circle", "two blue squares", "a green cross is left of a circle"] * 4, 300)


@pytest.fixture(scope="session")
def make_pictures():
    """Fill a folder with small, different pictures of noise with two captions each: 0.png, 0.txt, 1.jpg, …"""

    def make_pictures(folder, count):
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0)
        for i in range(count):
            picture = Image.fromarray(noise.integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8))
            picture.save(folder / f"{i}.{('png', 'jpg', 'webp')[i % 3]}")
            (folder / f"{i}.txt").write_text(f"picture {i}\nnumber {i}")
        return folder

    return make_pictures


@pytest.fixture(scope="session")
def save_vae():
    """Save a small autoencoder with random weights, chosen by `seed`, and return its folder as text."""

    def save_vae(folder, kind="AutoencoderKL", seed=0):
        import diffusers
        import torch

        parts = {
            "AutoencoderKL": {
                "block_out_channels": (4, 8, 8),  # divides sides by 4
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
                "norm_num_groups": 2,
                "latent_channels": 5,
                "scaling_factor": 0.3,
            },
            "AutoencoderTiny": {  # divides sides by 8
                "encoder_block_out_channels": (4, 4, 4, 4),
                "decoder_block_out_channels": (4, 4, 4, 4),
                "num_encoder_blocks": (1, 1, 1, 1),
                "num_decoder_blocks": (1, 1, 1, 1),
                "latent_channels": 6,
            },
        }
        torch.manual_seed(seed)
        getattr(diffusers, kind)(**parts[kind]).save_pretrained(folder)
        return str(folder)

    return save_vae
