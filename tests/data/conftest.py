"""What the tests of the data room share."""

import numpy as np
import pytest
from PIL import Image

from lit_transfusion.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red circle", "two blue squares", "a green cross is left of a circle"] * 4, 300)


@pytest.fixture(scope="session")
def make_pictures():
    """Fills a folder with small pictures of noise, no two alike, each with two captions: 0.png, 0.txt, 1.jpg, …"""

    def make_pictures(folder, count):
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0)
        for i in range(count):
            picture = Image.fromarray(noise.integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8))
            picture.save(folder / f"{i}.{('png', 'jpg', 'webp')[i % 3]}")
            (folder / f"{i}.txt").write_text(f"picture {i}\nnumber {i}")
        return folder

    return make_pictures
