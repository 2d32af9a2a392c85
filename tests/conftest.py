"""What several test folders share: layouts as strings, a tokenizer, small pipelines, checkpoints, pictures."""

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


@pytest.fixture(scope="session")
def save_checkpoint():
    """Writes a checkpoint: a file, or shards as Lightning's ModelParallelStrategy writes them, with everything except
    weights and the optimiser in meta.pt. The averaged weights are the weights plus `averages`."""

    import torch.distributed.checkpoint as dcp

    from lit_transfusion.generation.checkpoint import KEY

    def save_checkpoint(path, pipeline, averages=None, sharded=False, **changes):
        weights = pipeline.net.state_dict()
        state = {f"net.{name}": weight for name, weight in weights.items()}
        if averages is not None:
            state |= {f"ema.{name}": weight + averages for name, weight in weights.items()}
        rest = {KEY: pipeline.describe(), "global_step": 3} | changes
        if sharded:
            moments = {"exp_avg": {"net.head.weight": weights["head.weight"]}, "param_groups": [{"lr": 1.0}]}
            dcp.save({"state_dict": state, "optimizer_0": moments}, checkpoint_id=path, no_dist=True)
            torch.save(rest, path / "meta.pt")
        else:
            torch.save({"state_dict": state, "optimizer_states": [{"lr": 1.0}]} | rest, path)
        return path

    return save_checkpoint


@pytest.fixture(scope="session")
def make_pictures():
    """Fill a folder with small, different pictures of noise with two captions each: 0.png, 0.txt, 1.jpg, …"""

    import numpy as np
    from PIL import Image

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


@pytest.fixture
def make_subject(make_pipeline):
    """Makes a subject with an untrained model and pictures of shapes with 16 × 16 pixels.

    What is `given` of the subject's pictures, texts and so on is not made.
    """

    from lit_transfusion.evaluation.metric import Subject
    from lit_transfusion.generation.pipeline import Pipeline
    from lit_transfusion.generation.settings import Sampling
    from lit_transfusion.latents import Pixels
    from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion
    from lit_transfusion.shapes.source import Shapes

    def make_subject(num_examples=4, **given):
        small = make_pipeline()
        size = TransformerConfig(dim=32, n_layers=1, n_heads=2)
        net = Transfusion(small.tokenizer.vocab_size, size, LinearPatcher(dim=32, patch_size=8), Bidirectional())
        pipeline = Pipeline(net.eval(), small.noise, Pixels(), small.tokenizer, image_size=16)
        source = Shapes(image_size=16, num_val_examples=num_examples)
        sampling = Sampling(num_inference_steps=2, max_new_tokens=8)
        subject = Subject(pipeline, source, num_examples, sampling, batch_size=3)
        vars(subject).update(given)  # sets cached properties
        return subject

    return make_subject
