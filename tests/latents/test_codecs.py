"""Codecs: pixels as they are, and autoencoders of diffusers against diffusers' own calls, on tiny random weights."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_transfusion.errors import InputError
from lit_transfusion.latents import VAE, Codec, Pixels
from lit_transfusion.latents.vae import check_may_be_on_hub


def tiny_kl(**config):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        latent_channels=5,
        **config,
    ).eval()


def tiny_taesd(**config):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=6,
        **config,
    ).eval()


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    """A folder with an AutoencoderKL whose scale and shift are not the defaults, and the model itself."""
    folder = tmp_path_factory.mktemp("kl")
    model = tiny_kl(scaling_factor=0.3, shift_factor=0.2)
    model.save_pretrained(folder)
    return str(folder), model


@pytest.fixture
def broken(tmp_path):
    """A folder of its own with an AutoencoderKL, to break."""
    tiny_kl().save_pretrained(tmp_path)
    return tmp_path


def images(n=2, height=16, width=16):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Pixels


def test_pixels_come_back_as_they_went_in():
    codec = Pixels()
    assert torch.equal(codec.decode(codec.encode(images())), images())
    assert codec.encode(images(), generator()).shape[1:] == codec.latent_shape(16) == (3, 16, 16)


def test_pixels_are_clamped_when_decoded():
    assert torch.equal(Pixels().decode(torch.tensor([-3.0, 0.5, 3.0])), torch.tensor([-1.0, 0.5, 1.0]))


def test_pixels_need_no_diffusers():
    code = "import sys; from lit_transfusion.latents import Pixels; Pixels(); assert 'diffusers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# AutoencoderKL


def test_kl_mean_is_that_of_diffusers_shifted_and_scaled(kl):
    path, model = kl
    codec = VAE(path, sample_posterior=False)
    with torch.no_grad():
        mean = model.encode(images()).latent_dist.mean
    latents = codec.encode(images())
    torch.testing.assert_close(latents, (mean - 0.2) * 0.3)
    assert latents.shape == (2, *codec.latent_shape(16)) == (2, 5, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(latents), model.decode(mean).sample.clamp(-1, 1))


def test_kl_sample_follows_the_generator(kl):
    path, model = kl
    codec = VAE(path)
    with torch.no_grad():
        sample = model.encode(images()).latent_dist.sample(generator(3))
    torch.testing.assert_close(codec.encode(images(), generator(3)), (sample - 0.2) * 0.3)
    assert torch.equal(codec.encode(images(), generator(3)), codec.encode(images(), generator(3)))
    assert not torch.equal(codec.encode(images(), generator(3)), codec.encode(images(), generator(4)))


def test_encoding_is_a_draw_from_kept_moments_to_the_bit_of_diffusers_own(kl):
    codec = VAE(kl[0])
    with torch.no_grad():  # by what it has loaded: weights at other places of the memory give other last bits
        posterior = codec.autoencoder.encode(images()).latent_dist
    moments = codec.moments(images())
    assert torch.equal(moments, torch.cat([posterior.mean, posterior.logvar], 1))
    assert moments.shape[1:] == codec.moments_shape(16) == (10, 4, 4)
    expected = (posterior.sample(generator(3)) - 0.2) * 0.3
    assert torch.equal(codec.sample(moments, generator(3)), expected)
    assert torch.equal(codec.encode(images(), generator(3)), expected)


def test_draws_spread_as_the_log_variance_says(kl):
    codec = VAE(kl[0])
    moments = torch.zeros(2000, 10, 1, 1)
    moments[:, :5, 0, 0] = mean = torch.linspace(-2, 2, 5)
    moments[:, 5:, 0, 0] = log_variance = torch.linspace(-3, 1, 5)
    first, second = (codec.sample(moments, generator(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    z = first[..., 0, 0] / 0.3 + 0.2
    torch.testing.assert_close(z.std(0), (0.5 * log_variance).exp(), rtol=0.06, atol=0)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.12)
    assert torch.equal(
        VAE(kl[0], sample_posterior=False).sample(moments)[..., 0, 0], (mean.expand(2000, 5) - 0.2) * 0.3
    )


def test_noise_of_a_draw_is_that_of_float32_under_autocast(kl):
    """As it is where the moments are read from shards."""
    codec = VAE(kl[0])
    with torch.autocast("cpu", torch.bfloat16):
        found = codec.encode(images(), generator())
    torch.testing.assert_close(found, codec.encode(images(), generator()), rtol=0.02, atol=0.01)


def test_kl_without_a_shift_in_its_config(tmp_path):
    model = tiny_kl(scaling_factor=2.0)
    assert model.config.shift_factor is None
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        mean = model.encode(images()).latent_dist.mean
    torch.testing.assert_close(VAE(str(tmp_path), sample_posterior=False).encode(images()), mean * 2.0)


def test_kl_in_the_subfolder_of_a_pipeline(tmp_path):
    tiny_kl().save_pretrained(tmp_path / "vae")
    assert VAE(str(tmp_path), subfolder="vae").latent_channels == 5
    with pytest.raises(InputError, match="set subfolder: vae"):
        VAE(str(tmp_path))


def test_images_need_not_be_square(kl):
    codec = VAE(kl[0])
    latents = codec.encode(images(1, 8, 24))
    assert latents.shape == (1, 5, 2, 6)
    assert codec.decode(latents).shape == (1, 3, 8, 24)


# AutoencoderTiny


def test_tiny_is_that_of_diffusers_shifted_and_scaled(tmp_path):
    model = tiny_taesd(scaling_factor=2.0, shift_factor=0.1)
    model.save_pretrained(tmp_path)
    codec = VAE(str(tmp_path))
    with torch.no_grad():
        z = model.encode(images()).latents
        decoded = model.decode(z).sample.clamp(-1, 1)
    latents = codec.encode(images(), generator(1))
    torch.testing.assert_close(latents, (z - 0.1) * 2.0)
    torch.testing.assert_close(codec.decode(latents), decoded)
    assert latents.shape == (2, *codec.latent_shape(16)) == (2, 6, 2, 2)


def test_moments_of_tiny_are_its_latents_before_they_are_scaled(tmp_path):
    model = tiny_taesd(scaling_factor=2.0, shift_factor=0.1)
    model.save_pretrained(tmp_path)
    codec = VAE(str(tmp_path))
    with torch.no_grad():
        z = model.encode(images()).latents
    torch.testing.assert_close(codec.moments(images()), z)
    assert codec.moments_shape(16) == codec.latent_shape(16)
    assert torch.equal(codec.sample(z, generator()), (z - 0.1) * 2.0)


# Which codec it is


def test_identity_is_of_the_weights_and_the_scale_and_not_of_the_place(kl, broken, tmp_path_factory):
    path, model = kl
    own = VAE(path).identity()
    assert own.startswith("VAE-") and len(own) == len("VAE-") + 12
    elsewhere = tmp_path_factory.mktemp("pipeline")
    model.save_pretrained(elsewhere / "vae")
    assert VAE(str(elsewhere), subfolder="vae", sample_posterior=False).identity() == own
    assert VAE(str(broken)).identity() != own  # the same weights, scaled in another way
    with torch.no_grad():
        model.encoder.conv_in.bias[0] += 1e-3
        model.save_pretrained(elsewhere / "vae")
        model.encoder.conv_in.bias[0] -= 1e-3
    assert VAE(str(elsewhere), subfolder="vae").identity() != own


class Halved(Codec):
    """One of a user's own, as the first version of the base class asked for."""

    latent_channels, downscale = 3, 1

    def __init__(self, by: float = 2.0) -> None:
        super().__init__()
        self.by = by

    def encode(self, images, generator=None):
        return images / self.by


def test_codec_of_ones_own_that_only_encodes_still_does():
    assert torch.equal(Halved().encode(images(), generator()), images() / 2)
    with pytest.raises(NotImplementedError):
        Halved().moments(images())
    assert Halved().identity() == Halved(2.0).identity() != Halved(3.0).identity()


# What holds for each


@pytest.fixture(params=["pixels", "kl", "tiny"])
def codec(request, kl, tmp_path):
    if request.param == "pixels":
        return Pixels()
    if request.param == "kl":
        return VAE(kl[0])
    tiny_taesd().save_pretrained(tmp_path)
    return VAE(str(tmp_path))


def test_a_codec_is_frozen_wherever_it_is(codec):
    around = torch.nn.Sequential(codec).train()
    assert around.training
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    latents = codec.encode(images())
    assert not latents.requires_grad
    assert not codec.decode(latents).requires_grad


def test_no_images_give_no_latents_and_back(codec):
    latents = codec.encode(images(0))
    assert codec.moments(images(0)).shape == (0, *codec.moments_shape(16))
    assert latents.shape == (0, *codec.latent_shape(16))
    assert codec.decode(latents).shape == (0, 3, 16, 16)


def test_decoded_images_are_in_range(codec):
    decoded = codec.decode(100 * torch.randn(1, *codec.latent_shape(16), generator=generator()))
    assert decoded.min() >= -1
    assert decoded.max() <= 1


def test_latents_keep_the_dtype_of_the_images_under_autocast(codec):
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode(images())
        assert latents.dtype == codec.decode(latents).dtype == torch.float32


def test_image_size_has_to_fit(codec):
    assert codec.latent_shape(8 * codec.downscale) == (codec.latent_channels, 8, 8)
    with pytest.raises(InputError, match="image_size 0 is not a multiple"):
        codec.latent_shape(0)
    if codec.downscale > 1:
        with pytest.raises(InputError, match=f"image_size 17 is not a multiple of {codec.downscale}"):
            codec.latent_shape(17)


def test_constructor_arguments_build_the_same_codec_again(kl):
    codec = VAE(kl[0], sample_posterior=False)
    names = ("path", "subfolder", "sample_posterior", "revision")
    again = VAE(**{name: getattr(codec, name) for name in names})
    assert torch.equal(again.encode(images()), codec.encode(images()))


def test_the_base_says_what_is_missing():
    with pytest.raises(NotImplementedError):
        Codec().encode(images())


# What can be wrong with a path


def test_path_that_is_neither_here_nor_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="no folder here, and the Hugging Face hub") as caught:
        VAE("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{here}/nothing", "is no folder here"),
        ("", "is no folder here"),
        ("word", "is no folder here"),
        ("./nothing", "is no folder here"),
        ("no/such/folder", "is no folder here"),
        ("no/vae.safetensors", "is no folder here"),
        ("there/vae.safetensors", "is a file, and no folder"),
        ("there/nothing", "is not there, though the folder there is; mend the path, or set revision: main"),
    ],
)
def test_path_that_is_no_name_on_the_hub_is_not_asked_of_it(tmp_path, monkeypatch, path, said):
    """Offline, the hub would have given the reason."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "vae.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(said)):
        VAE(path.format(here=tmp_path))


def test_name_on_the_hub_whose_owner_is_also_a_folder_here(tmp_path, monkeypatch):
    """It may be asked for with a revision, or if it was fetched before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    check_may_be_on_hub("there/vae", None, "main")
    with pytest.raises(InputError, match="is not there"):
        check_may_be_on_hub("there/vae", None, None)
    fetched = tmp_path / "cache" / "models--there--vae"  # as the hub's own library keeps it
    (fetched / "snapshots" / "0123").mkdir(parents=True)
    (fetched / "snapshots" / "0123" / "config.json").write_text("{}")
    (fetched / "refs").mkdir()
    (fetched / "refs" / "main").write_text("0123")
    check_may_be_on_hub("there/vae", None, None)


def test_folder_without_a_config(tmp_path):
    with pytest.raises(InputError, match=r"holds no readable config\.json; if it is a whole pipeline"):
        VAE(str(tmp_path))


def test_config_that_is_no_json(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"no readable config\.json"):
        VAE(str(broken))


def test_model_that_is_no_autoencoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(InputError, match="class UNet2DConditionModel, not one of AutoencoderKL, AutoencoderTiny"):
        VAE(str(tmp_path))


def test_weights_that_are_cut_short(broken):
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="weights of its AutoencoderKL do not load"):
        VAE(str(broken))


def test_weights_that_do_not_fit_the_config(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "latent_channels": 7}))
    with pytest.raises(InputError, match="weights of its AutoencoderKL do not load") as caught:
        VAE(str(broken))
    assert "\n" not in str(caught.value)


def test_weights_of_which_some_are_missing(broken):
    weights = load_file(broken / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_in.bias"]
    save_file(weights, broken / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 of"):
        VAE(str(broken))
