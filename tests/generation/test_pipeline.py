"""A pipeline as plain data, and back; and checkpoint files, right and wrong."""

import pytest
import torch

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import KEY, Pipeline, read_checkpoint
from lit_transfusion.generation.sampler import Sampling, draw, write
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, Causal, LinearPatcher, TransformerSize, Transfusion

patchers = pytest.mark.parametrize("patcher", ["linear", "unet"])
masks = pytest.mark.parametrize("mask", [Bidirectional(), Causal()], ids=["bidirectional", "causal"])
NOISE = DDPM(num_train_timesteps=50, beta_schedule="linear", prediction_type="v_prediction", clip_sample=True)


def outputs(pipeline):
    sampling = Sampling(num_inference_steps=2, max_new_tokens=4)
    return draw(pipeline, ["a red circle"], sampling), write(pipeline, torch.zeros(1, 3, 4, 4), sampling)


def assert_same_outputs(pipeline, other):
    for ours, theirs in zip(outputs(pipeline), outputs(other), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def save(path, pipeline, **ema):
    """A checkpoint as a run writes it, as far as generation is concerned."""
    weights = {f"net.{name}": w for name, w in pipeline.net.state_dict().items()}
    weights |= {f"ema.{name}": w for name, w in ema.items()}
    torch.save({"state_dict": weights, KEY: pipeline.describe(), "global_step": 3}, path)
    return path


@patchers
@masks
def test_a_description_makes_the_same_pipeline(make_pipeline, tmp_path, patcher, mask):
    """Written to a file and read with `weights_only`, which takes nothing but plain data."""
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


def test_a_description_knows_the_base_of_the_rotary_positions(tokenizer):
    """It is no weight, so that nobody would notice its loss but the user."""
    torch.manual_seed(0)
    size, patcher = TransformerSize(dim=32, n_layers=1, n_heads=2), LinearPatcher(dim=32)
    net = Transfusion(tokenizer.vocab_size, size, patcher, Bidirectional(), rope_theta=20.0)
    pipeline = Pipeline(net.eval(), DDPM(prediction_type="sample"), Pixels(), tokenizer, image_size=4)
    again = Pipeline.from_description(pipeline.describe())
    again.net.load_state_dict(net.state_dict())
    assert_same_outputs(pipeline, again)


def test_sizes_of_images(make_pipeline):
    pipeline = make_pipeline()
    assert pipeline.latent_shape == (3, 4, 4)
    assert pipeline.patches_per_image == 4
    assert pipeline._replace(image_size=6).patches_per_image == 9


def test_a_checkpoint_is_enough(make_pipeline, tmp_path):
    pipeline = make_pipeline(noise=NOISE)
    assert_same_outputs(pipeline, Pipeline.from_checkpoint(save(tmp_path / "run.ckpt", pipeline)))


@pytest.mark.parametrize("ema", [True, False])
def test_averaged_weights_are_taken_if_wanted_and_there(make_pipeline, tmp_path, ema):
    pipeline = make_pipeline()
    averages = {name: w + 1 for name, w in pipeline.net.state_dict().items()}
    loaded = Pipeline.from_checkpoint(save(tmp_path / "run.ckpt", pipeline, **averages), ema=ema)
    expected = averages if ema else pipeline.net.state_dict()
    for name, weight in loaded.net.state_dict().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("part", ["patcher", "mask", "noise", "codec"])
@pytest.mark.parametrize("class_path", ["os.system", "collections.OrderedDict", "subprocess.Popen", "builtins.exec"])
def test_a_description_calls_nothing_but_parts(make_pipeline, tmp_path, part, class_path):
    description = make_pipeline().describe()
    description[part] = {"class_path": class_path, "init_args": {}}
    with pytest.raises(InputError, match=f"{class_path} is not a "):
        Pipeline.from_description(description)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"none\.ckpt not found"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="not found"):
        read_checkpoint(tmp_path)  # a folder


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        b"base: default.yaml\n",
        b"PK\x03\x04 a zip file cut short",
        b"\x89PNG\r\n\x1a\n",
        bytes(99),
        b"\x80\x02",  # the start of a pickle; from here on each makes torch raise an error of another type
        b"\x80\x02}q\x00(X",
        b"r\xdd]\x93\x08",
        b"U\x02\x86Jt",
        b"j\xf1ua\x8d",
    ],
    ids=lambda content: repr(content[:8]),
)
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    """One line that names the file, whatever is in it."""
    path = tmp_path / "wrong.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"wrong\.ckpt is not a checkpoint") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_cut_short(make_pipeline, tmp_path):
    """As a full disk leaves it."""
    path = save(tmp_path / "run.ckpt", make_pipeline())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="is not a checkpoint that can be read"):
        read_checkpoint(path)


class Touch:
    """Runs code when it is unpickled by someone careless."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_that_would_run_code(tmp_path):
    torch.save({KEY: Touch(tmp_path / "touched")}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint that can be read"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(2)], ids=["dict", "list", "tensor"])
def test_a_checkpoint_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt is not a checkpoint of lit_transfusion"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_tokenizer_in_a_description_is_its_bytes(make_pipeline):
    pipeline = make_pipeline()
    model = pipeline.describe()["tokenizer"]
    assert isinstance(model, bytes)
    assert Tokenizer(model).vocab_size == pipeline.tokenizer.vocab_size
