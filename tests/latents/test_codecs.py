"""Tests of the codecs: pixels, and autoencoders with tiny random weights against direct calls of diffusers."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_transfusion.errors import InputError
from lit_transfusion.latents import VAE, VQ, Codec, Pixels
from lit_transfusion.latents.diffusers_folder import check_may_be_on_hub


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


def tiny_vq(**config):
    from diffusers import VQModel

    torch.manual_seed(0)
    return VQModel(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        latent_channels=5,
        vq_embed_dim=4,
        num_vq_embeddings=600,
        **config,
    ).eval()


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    """A folder with a VQModel whose codes are used evenly, and the model."""
    folder = tmp_path_factory.mktemp("vq")
    model = tiny_vq()
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(std=0.1)
    model.save_pretrained(folder)
    return str(folder), model


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    """A folder with an AutoencoderKL that has its own scale and shift, and the model."""
    folder = tmp_path_factory.mktemp("kl")
    model = tiny_kl(scaling_factor=0.3, shift_factor=0.2)
    model.save_pretrained(folder)
    return str(folder), model


@pytest.fixture
def broken(tmp_path):
    """A new folder with an AutoencoderKL, which the test damages."""
    tiny_kl().save_pretrained(tmp_path)
    return tmp_path


def images(n=2, height=16, width=16):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Pixels


def test_decoded_pixels_equal_the_encoded_ones():
    codec = Pixels()
    assert torch.equal(codec.decode(codec.encode(images())), images())
    assert codec.encode(images(), generator()).shape[1:] == codec.latent_shape(16) == (3, 16, 16)


def test_pixels_are_clamped_when_decoded():
    assert torch.equal(Pixels().decode(torch.tensor([-3.0, 0.5, 3.0])), torch.tensor([-1.0, 0.5, 1.0]))


def test_pixels_do_not_import_diffusers():
    code = "import sys; from lit_transfusion.latents import Pixels; Pixels(); assert 'diffusers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# AutoencoderKL


def test_kl_mean_equals_that_of_diffusers_shifted_and_scaled(kl):
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


def test_sample_of_moments_is_bit_equal_to_encoding_and_to_diffusers(kl):
    codec = VAE(kl[0])
    with torch.no_grad():  # same instance: with weights at other addresses the last bits may differ
        posterior = codec.autoencoder.encode(images()).latent_dist
    moments = codec.moments(images())
    assert torch.equal(moments, torch.cat([posterior.mean, posterior.logvar], 1))
    assert moments.shape[1:] == codec.moments_shape(16) == (10, 4, 4)
    expected = (posterior.sample(generator(3)) - 0.2) * 0.3
    assert torch.equal(codec.sample(moments, generator(3)), expected)
    assert torch.equal(codec.encode(images(), generator(3)), expected)


def test_samples_have_the_given_mean_and_variance(kl):
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


def test_sampling_draws_float32_noise_under_autocast(kl):
    """It is the same noise as when the moments are read from shards."""
    codec = VAE(kl[0])
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode(images(), generator())
    torch.testing.assert_close(latents, codec.encode(images(), generator()), rtol=0.02, atol=0.01)


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
    with pytest.raises(InputError, match=r"config\.json.*set subfolder: vae"):
        VAE(str(tmp_path))


def test_images_need_not_be_square(kl):
    codec = VAE(kl[0])
    latents = codec.encode(images(1, 8, 24))
    assert latents.shape == (1, 5, 2, 6)
    assert codec.decode(latents).shape == (1, 3, 8, 24)


# AutoencoderTiny


def test_tiny_equals_that_of_diffusers_shifted_and_scaled(tmp_path):
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


# Codes


def test_codes_are_the_rows_of_the_codebook_that_diffusers_finds(vq):
    codec = VQ(vq[0])
    with torch.no_grad():
        h = vq[1].encode(images()).latents  # (2, 4, 4, 4)
        vectors = h.permute(0, 2, 3, 1).flatten(0, 2)
        nearest = (vectors[:, None] - vq[1].quantize.embedding.weight).square().sum(2).argmin(1)
        decoded = vq[1].decode(h).sample.clamp(-1, 1)
    codes = codec.encode(images())
    assert codes.shape == (2, *codec.latent_shape(16)) == (2, 1, 4, 4) and codes.dtype == torch.int64
    assert torch.equal(codes.flatten(), nearest) and len(nearest.unique()) > 4
    torch.testing.assert_close(codec.decode(codes), decoded)
    assert codec.num_codes == 600 and codec.identity().startswith("VQ-")


def test_a_model_that_looks_its_codes_up_decodes_the_same(tmp_path, vq):
    model = tiny_vq(lookup_from_codebook=True)
    model.load_state_dict(vq[1].state_dict())
    model.save_pretrained(tmp_path)
    codes = VQ(vq[0]).encode(images())
    torch.testing.assert_close(VQ(str(tmp_path)).decode(codes), VQ(vq[0]).decode(codes))


def test_moments_of_codes_are_exact_in_float16(vq):
    """Prepared pictures have moments in float16, which cannot contain each number above 2048."""
    codec, codes = VQ(vq[0]), torch.tensor([0, 1, 255, 256, 2049, 16_383, 262_143]).view(1, 1, 7, 1)
    moments = torch.cat([codes // 256, codes % 256], 1).half()
    assert torch.equal(codec.sample(moments.float()), codes)
    assert torch.equal(codec.sample(codec.moments(images()).half()), codec.encode(images()))
    assert codec.moments_shape(16) == (2, 4, 4)


def test_each_codec_names_the_other_for_a_folder_of_the_other(vq, kl):
    with pytest.raises(InputError, match=r"VAE path .* class VQModel.* codec VQ"):
        VAE(vq[0])
    with pytest.raises(InputError, match=r"VQ path .* class AutoencoderKL.* codec VAE"):
        VQ(kl[0])


# The identity of a codec


def test_identity_depends_on_weights_and_scale_and_not_on_the_path(kl, broken, tmp_path_factory):
    path, model = kl
    own = VAE(path).identity()
    assert own.startswith("VAE-") and len(own) == len("VAE-") + 12
    elsewhere = tmp_path_factory.mktemp("pipeline")
    model.save_pretrained(elsewhere / "vae")
    assert VAE(str(elsewhere), subfolder="vae", sample_posterior=False).identity() == own
    assert VAE(str(broken)).identity() != own  # the same weights with another scale
    with torch.no_grad():
        model.encoder.conv_in.bias[0] += 1e-3
        model.save_pretrained(elsewhere / "vae")
        model.encoder.conv_in.bias[0] -= 1e-3
    assert VAE(str(elsewhere), subfolder="vae").identity() != own


class Halved(Codec):
    """A codec of a user that implements only `encode`."""

    latent_channels, downscale = 3, 1

    def __init__(self, by: float = 2.0) -> None:
        super().__init__()
        self.by = by

    def encode(self, images, generator=None):
        return images / self.by


def test_codec_may_implement_only_encode():
    assert torch.equal(Halved().encode(images(), generator()), images() / 2)
    with pytest.raises(NotImplementedError):
        Halved().moments(images())
    assert Halved().identity() == Halved(2.0).identity() != Halved(3.0).identity()


# All codecs


@pytest.fixture(params=["pixels", "kl", "tiny", "vq"])
def codec(request, kl, vq, tmp_path):
    if request.param == "pixels":
        return Pixels()
    if request.param == "kl":
        return VAE(kl[0])
    if request.param == "vq":
        return VQ(vq[0])
    tiny_taesd().save_pretrained(tmp_path)
    return VAE(str(tmp_path))


def test_codec_is_frozen_inside_another_module(codec):
    around = torch.nn.Sequential(codec).train()
    assert around.training
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    latents = codec.encode(images())
    assert not latents.requires_grad
    assert not codec.decode(latents).requires_grad


def test_empty_batch_of_images(codec):
    latents = codec.encode(images(0))
    assert codec.moments(images(0)).shape == (0, *codec.moments_shape(16))
    assert latents.shape == (0, *codec.latent_shape(16))
    assert codec.decode(latents).shape == (0, 3, 16, 16)


def test_decoded_images_are_in_range(codec):
    latents = 100 * torch.randn(1, *codec.latent_shape(16), generator=generator())
    decoded = codec.decode(latents if codec.num_codes is None else latents.long().clamp(0, codec.num_codes - 1))
    assert decoded.min() >= -1
    assert decoded.max() <= 1


def test_latents_keep_the_dtype_of_the_images_under_autocast(codec):
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode(images())
        assert codec.decode(latents).dtype == torch.float32
        assert latents.dtype == (torch.float32 if codec.num_codes is None else torch.int64)


def test_image_size_must_be_a_multiple_of_the_downscale_factor(codec):
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


def test_base_class_does_not_encode():
    with pytest.raises(NotImplementedError):
        Codec().encode(images())


# Invalid paths


def test_error_for_a_path_neither_on_disk_nor_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"path 'nobody/nothing'.* the Hugging Face hub .*check the path") as caught:
        VAE("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{here}/nothing", "is not a folder .*config.json"),
        ("", "is not a folder .*config.json"),
        ("word", "is not a folder .*config.json"),
        ("./nothing", "is not a folder .*config.json"),
        ("no/such/folder", "is not a folder .*config.json"),
        ("no/vae.safetensors", "is not a folder .*config.json"),
        ("there/vae.safetensors", "is a file.*config.json"),
        ("there/nothing", "folder there .*fix the path, or set revision: main"),
    ],
)
def test_path_that_is_not_a_name_on_the_hub_is_not_requested(tmp_path, monkeypatch, path, message):
    """A request would have another message, since the hub is offline here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "vae.safetensors").write_bytes(b"")
    path = path.format(here=tmp_path)
    with pytest.raises(InputError, match=f"VAE path {re.escape(repr(path))} .*{message}"):
        VAE(path)


def test_name_on_the_hub_whose_owner_is_also_a_local_folder(tmp_path, monkeypatch):
    """It is accepted with a revision, or if it was downloaded before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    check_may_be_on_hub("VAE", "there/vae", None, "main")
    with pytest.raises(InputError, match="there/vae"):
        check_may_be_on_hub("VAE", "there/vae", None, None)
    fetched = tmp_path / "cache" / "models--there--vae"  # the layout of the cache
    (fetched / "snapshots" / "0123").mkdir(parents=True)
    (fetched / "snapshots" / "0123" / "config.json").write_text("{}")
    (fetched / "refs").mkdir()
    (fetched / "refs" / "main").write_text("0123")
    check_may_be_on_hub("VAE", "there/vae", None, None)


def test_folder_without_a_config(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}.* config\.json.*set subfolder: vae"):
        VAE(str(tmp_path))


def test_config_that_is_not_json(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(InputError, match=rf"{broken}.*config\.json"):
        VAE(str(broken))


def test_model_that_is_not_an_autoencoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(InputError, match=r"UNet2DConditionModel.* AutoencoderKL, AutoencoderTiny"):
        VAE(str(tmp_path))


def test_truncated_weights(broken):
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{broken}.* weights .*AutoencoderKL"):
        VAE(str(broken))


def test_weights_that_do_not_fit_the_config(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "latent_channels": 7}))
    with pytest.raises(InputError, match=rf"{broken}.* weights .*AutoencoderKL") as caught:
        VAE(str(broken))
    assert "\n" not in str(caught.value)


def test_missing_weights(broken):
    weights = load_file(broken / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_in.bias"]
    save_file(weights, broken / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"{broken}.* lacks 1 .*decoder\.conv_in\.bias"):
        VAE(str(broken))
