"""What several test files share: layouts written as strings, a tokenizer, small pipelines."""

import functools

import pytest
import torch

torch.set_num_threads(1)  # for tensors as small as these, a second thread costs more than it brings


@pytest.fixture(scope="session")
def lay_out():
    """Rows written as strings → document_ids and image_ids (B, L).

    "t" is text, "|" ends a document, a run of any other letter is an image: "tAAAAt|tBBCC". Rows are filled with a
    document of text up to the longest, or to `length`.
    """

    def lay_out(*rows, length=0):
        length = max([length, *(len(row.replace("|", "")) for row in rows)])
        document_ids, image_ids, image = [], [], -1
        for row in rows:
            documents, images, document, before = [], [], 0, "|"
            for letter in row + "|" + "t" * (length - len(row.replace("|", ""))):
                image += letter not in ("t", "|", before)
                if letter == "|":
                    document += 1
                else:
                    documents.append(document)
                    images.append(-1 if letter == "t" else image)
                before = letter
            document_ids.append(documents)
            image_ids.append(images)
        return torch.tensor(document_ids), torch.tensor(image_ids)

    return lay_out


@functools.cache
def small_tokenizer():
    from lit_transfusion.data.tokenizer import Tokenizer

    return Tokenizer.train(["a red circle and a blue square", "two green triangles on white"], vocab_size=280)


@pytest.fixture(scope="session")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="session")
def make_pipeline():
    """Makes untrained pipelines for pictures of 4 × 4 pixels, 2 × 2 patches."""
    from lit_transfusion.diffusion import DDPM
    from lit_transfusion.generation.pipeline import Pipeline
    from lit_transfusion.latents import Pixels
    from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion, UNetPatcher

    patchers = {
        "linear": lambda: LinearPatcher(latent_channels=3, dim=32, patch_size=2),
        "unet": lambda: UNetPatcher(latent_channels=3, dim=32, patch_size=2, channels=16, head_dim=8),
    }

    tokenizer = small_tokenizer()  # not the fixture: some folders have one of their own, and this is made once for all

    def make_pipeline(patcher="linear", mask=None, noise=None):
        torch.manual_seed(0)
        size = TransformerConfig(dim=32, n_layers=2, n_heads=2, multiple_of=16)
        net = Transfusion(tokenizer.vocab_size, size, patchers[patcher](), mask or Bidirectional())
        return Pipeline(net.eval(), noise or DDPM(), Pixels(), tokenizer, image_size=4)

    return make_pipeline


@pytest.fixture
def script(monkeypatch):
    """Takes what the sample of seed 0, 1, 2, … writes out of the net's hands: tokens, and word 50 after them."""
    from lit_transfusion.generation import engine

    def script(*plans):
        plans = [list(plan) for plan in plans]

        def pick(logits, generators, sampling):
            rows = [generator.initial_seed() for generator in generators]
            return [plans[row].pop(0) if plans[row] else 50 for row in rows]

        monkeypatch.setattr(engine, "pick", pick)

    return script
