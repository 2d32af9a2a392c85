"""A pipeline converted to plain data and back."""

import pytest
import torch

import lit_transfusion
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, Causal, LinearPatcher, TransformerConfig, Transfusion

patchers = pytest.mark.parametrize("patcher", ["linear", "unet"])
masks = pytest.mark.parametrize("mask", [Bidirectional(), Causal()], ids=["bidirectional", "causal"])
NOISE = DDPM(num_train_timesteps=50, beta_schedule="linear", prediction_type="v_prediction", clip_sample=True)


@patchers
@masks
def test_a_description_gives_the_same_pipeline(make_pipeline, assert_same_outputs, tmp_path, patcher, mask):
    """It is written to a file and read with `weights_only`, which accepts only plain data."""
    pipeline = make_pipeline(patcher, mask, NOISE)
    torch.save(pipeline.describe(), tmp_path / "description.pt")
    description = torch.load(tmp_path / "description.pt", weights_only=True)
    assert description == pipeline.describe()
    again = Pipeline.from_description(description)
    assert not again.net.training
    assert (type(again.net.patcher), type(again.net.mask)) == (type(pipeline.net.patcher), type(mask))
    assert isinstance(again.codec, Pixels) and again.image_size == 4
    assert again.tokenizer.encode("two blue squares") == pipeline.tokenizer.encode("two blue squares")
    again.net.load_state_dict(pipeline.net.state_dict())
    assert_same_outputs(pipeline, again)
    assert again.describe() == description


CHANGES = [
    {"rope_theta": 20.0},
    {"rope": "2d", "norm_eps": 0.1},
    {"norm_order": "post", "qk_norm": True, "n_kv_heads": 1},
    {"modality_weights": "ffn", "tie_embeddings": True},
    {"modality_weights": "all", "dropout": 0.1},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_a_description_contains_the_whole_configuration(tokenizer, assert_same_outputs, changes):
    """Most of it is not in the shapes of weights, so loading them would not notice that it is missing."""
    torch.manual_seed(0)
    config, patcher = TransformerConfig(dim=32, n_layers=1, n_heads=2, **changes), LinearPatcher(dim=32)
    net = Transfusion(tokenizer.vocab_size, config, patcher, Bidirectional())
    pipeline = Pipeline(net.eval(), DDPM(prediction_type="sample"), Pixels(), tokenizer, image_size=4)
    again = Pipeline.from_description(pipeline.describe())
    again.net.load_state_dict(net.state_dict())
    assert_same_outputs(pipeline, again)


def test_a_description_of_version_0_1(make_pipeline, assert_same_outputs):
    """It has the widths only, and `rope_theta` beside them; DDPM was in another file; all pictures were squares."""
    pipeline = make_pipeline()
    description = pipeline.describe()
    assert description["noise"]["class_path"] == "lit_transfusion.diffusion.ddpm.DDPM"
    description["noise"] |= {"class_path": "lit_transfusion.diffusion.process.DDPM"}
    del description["keep_ratio"]
    widths = {name: description["size"][name] for name in ("dim", "n_layers", "n_heads", "hidden_dim", "multiple_of")}
    again = Pipeline.from_description(description | {"size": widths, "rope_theta": 1e4})
    again.net.load_state_dict(pipeline.net.state_dict())
    assert_same_outputs(pipeline, again)
    older = Pipeline.from_description(description | {"size": widths, "rope_theta": 20.0})
    assert older.net.transformer.config.rope_theta == 20.0


def test_sizes_of_images(make_pipeline):
    pipeline = make_pipeline()
    assert pipeline.latent_shape == (3, 4, 4)
    assert pipeline.patches_per_image == 4
    pipeline.image_size = 6
    assert pipeline.patches_per_image == 9


@pytest.mark.parametrize("part", ["patcher", "mask", "noise", "codec"])
@pytest.mark.parametrize("class_path", ["os.system", "collections.OrderedDict", "subprocess.Popen", "builtins.exec"])
def test_a_description_calls_only_parts(make_pipeline, tmp_path, part, class_path):
    description = make_pipeline().describe()
    description[part] = {"class_path": class_path, "init_args": {}}
    with pytest.raises(InputError, match=f"{class_path} is not a "):
        Pipeline.from_description(description)


@pytest.mark.parametrize("key", ["size", "patcher", "mask", "noise", "codec", "tokenizer", "image_size"])
def test_a_description_that_lacks_a_key(make_pipeline, key):
    description = make_pipeline().describe()
    del description[key]
    with pytest.raises(InputError, match=f"description .* lacks {key}"):
        Pipeline.from_description(description)


def test_a_size_of_another_version_is_an_error(make_pipeline):
    description = make_pipeline().describe()
    description["size"]["n_experts"] = 8
    with pytest.raises(InputError, match=r"TransformerConfig .*'n_experts'"):
        Pipeline.from_description(description)


def test_pipeline_is_importable_from_the_package():
    assert lit_transfusion.Pipeline is Pipeline
    with pytest.raises(ImportError):
        from lit_transfusion import NoSuchThing  # noqa: F401


def test_a_tokenizer_in_a_description_is_its_bytes(make_pipeline):
    pipeline = make_pipeline()
    model = pipeline.describe()["tokenizer"]
    assert isinstance(model, bytes)
    assert Tokenizer(model).vocab_size == pipeline.tokenizer.vocab_size
