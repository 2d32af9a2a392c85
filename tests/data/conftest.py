"""A tokenizer of this folder."""

import pytest

from lit_transfusion.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red circle", "two blue squares", "a green cross is left of a circle"] * 4, 300)
