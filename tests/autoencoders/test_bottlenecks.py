"""Codes: their averages, start, replacement, and the saved networks, which must do what was trained."""

import json

import pytest
import torch

from lit_transfusion.autoencoders import FSQ, KL, VQ
from lit_transfusion.autoencoders.reconstruction_measures import code_use
from lit_transfusion.autoencoders.save_folder import save_folder
from lit_transfusion.errors import InputError
from lit_transfusion.latents import VAE


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The learned codebook


def test_a_code_is_the_moving_average_of_its_latents():
    torch.manual_seed(0)
    bottleneck = VQ(codes=4, code_dim=2, decay=0.75, kmeans_start=False, dead_below=0).train()
    latents = noise(2, 2, 3, 3)
    before = bottleneck.codebook_rows().clone()
    codes = bottleneck.quantize(latents)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 2)
    nearest = torch.cdist(flat, before).argmin(1)
    torch.testing.assert_close(codes.permute(0, 2, 3, 1).reshape(-1, 2), before[nearest])
    for code in range(4):
        mine = flat[nearest == code]
        size = 0.75 * 1 + 0.25 * len(mine)  # the average number of its latents starts at 1
        expected = (0.75 * before[code] + 0.25 * mine.sum(0)) / size
        torch.testing.assert_close(bottleneck.codebook_rows()[code], expected, rtol=1e-4, atol=1e-4)


def test_first_batch_gives_the_start():
    """Four clusters far apart: each code is the centre of one."""
    torch.manual_seed(0)
    centres = torch.tensor([[10.0, 0], [0, 10], [-10, 0], [0, -10]])
    latents = (centres.repeat(16, 1) + 0.01 * noise(64, 2)).T.reshape(1, 2, 8, 8)
    bottleneck = VQ(codes=4, code_dim=2).train()
    bottleneck.quantize(latents)
    distances = torch.cdist(centres, bottleneck.codebook_rows()).min(1).values
    assert (distances < 0.2).sum() >= 3  # k-means may start with two codes in one cluster
    few = VQ(codes=65, code_dim=2).train()
    with pytest.raises(
        InputError, match=r"codes 65 is too large for kmeans_start: the first batch has 64 latents; raise "
    ):
        few.quantize(latents)
    VQ(codes=65, code_dim=2, kmeans_start=False).train().quantize(latents)


@pytest.mark.parametrize("replaced", [True, False])
def test_codes_that_are_not_used_are_replaced_by_latents_of_the_batch(replaced):
    torch.manual_seed(0)
    bottleneck = VQ(codes=8, code_dim=2, decay=0.5, kmeans_start=False, dead_below=0.1 if replaced else 0.0).train()
    bottleneck.codebook.codebook = 100 + noise(8, 2)  # all far away: only one is the nearest
    bottleneck.codebook._codebook.embed_avg.copy_(bottleneck.codebook._codebook.embed)
    used = []
    for seed in range(12):
        latents = noise(4, 2, 4, 4, seed=seed)
        codes = bottleneck.quantize(latents)
        used.append(len(codes.permute(0, 2, 3, 1).reshape(-1, 2).unique(dim=0)))
    assert used[0] <= 2
    assert used[-1] == 8 if replaced else used[-1] <= 2


def test_new_code_gets_time_to_be_used():
    """It starts with the mean use, 4 here, so the threshold of 0.4 is reached only after several steps without use."""
    torch.manual_seed(0)
    bottleneck = VQ(codes=16, code_dim=2, kmeans_start=False).train()
    codebook = bottleneck.codebook._codebook
    codebook.cluster_size.zero_()
    bottleneck.quantize(noise(4, 2, 4, 4))
    assert (codebook.threshold_ema_dead_code, codebook.reset_cluster_size) == (pytest.approx(0.4), 4)
    assert (codebook.cluster_size == 4).sum() >= 14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VQ(codes=1), "model.bottleneck.codes 1 is invalid"),
        (lambda: VQ(code_dim=0), "model.bottleneck.code_dim 0 is invalid"),
        (lambda: VQ(dead_below=1.0), "model.bottleneck.dead_below 1.0 is invalid"),
        (lambda: FSQ([8, 1]), r"model.bottleneck.levels \[8, 1\] is invalid"),
    ],
)
def test_invalid_argument_is_an_error(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_use_of_codes():
    use = code_use(torch.tensor([2, 2, 0, 4]))
    assert use["code_usage"] == 0.75
    assert use["code_perplexity"] == pytest.approx(0.25**-0.25 * 0.25**-0.25 * 0.5**-0.5)
    assert code_use(torch.full((8,), 3)) == {"code_usage": 1.0, "code_perplexity": pytest.approx(8)}


# Saved networks


@pytest.fixture
def trained(make_module, pictures):
    """A module after two batches, so that its codebook has been written, and its average the same weights."""

    def trained(bottleneck):
        module = make_module(bottleneck).train()
        for step in range(2):
            torch.manual_seed(step)
            module.terms(pictures, step, torch.Generator().manual_seed(step))
        module.ema.load_state_dict(module.net.state_dict())
        return module

    return trained


def save(module, folder, pictures):
    measures = module.measure_all([pictures])
    save_folder(module.ema, folder, measures.latent_statistics(), measures.values(), 7)
    return measures


@pytest.mark.parametrize("make", [lambda: VQ(codes=16, code_dim=2), lambda: FSQ([4, 3, 2])], ids=["VQ", "FSQ"])
def test_saved_vq_model_gives_the_trained_ids_and_reconstructions(make, trained, pictures, tmp_path):
    from diffusers import VQModel

    module = trained(make())
    save(module, tmp_path / "codec", pictures)
    model = VQModel.from_pretrained(tmp_path / "codec").eval()
    assert not model.config.lookup_from_codebook
    rows = module.bottleneck.codebook_rows()
    assert torch.equal(model.quantize.embedding.weight, rows)
    with torch.no_grad():
        reconstruction, encoded = module.reconstruct(pictures)
        assert torch.equal(model(pictures).sample, reconstruction)
        latents = model.encode(pictures).latents  # (N, C, h, w)
        flat = latents.permute(0, 2, 3, 1).reshape(-1, rows.shape[1])
        nearest = (flat[:, None] - rows).square().sum(-1).argmin(1)
        assert torch.equal(encoded.ids.flatten(), nearest)
        # The quantiser in training chooses the same codes.
        torch.testing.assert_close(module.bottleneck.quantize(latents), encoded.latents)
        lookup = rows[encoded.ids].permute(0, 3, 1, 2)
        torch.testing.assert_close(model.decode(lookup, force_not_quantize=True).sample, reconstruction)
    config = json.loads((tmp_path / "codec" / "config.json").read_text())
    assert config["_class_name"] == "VQModel" and config["num_vq_embeddings"] == len(rows)
    assert config["scaling_factor"] == pytest.approx(1 / lookup.std(correction=0).item(), rel=1e-4)


def test_fsq_is_the_nearest_row_of_its_grid():
    bottleneck = FSQ([8, 5, 2])
    latents = 2 * noise(64, 3, 4, 4)
    rows = bottleneck.codebook_rows()
    assert rows.shape == (80, 3) and rows.abs().max() == 1 and len(rows.unique(dim=0)) == 80
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 3)
    nearest = rows[(flat[:, None].double() - rows).square().sum(-1).argmin(1)]
    torch.testing.assert_close(bottleneck.quantize(latents).permute(0, 2, 3, 1).reshape(-1, 3), nearest)


def test_saved_autoencoder_kl_gives_the_trained_reconstructions(trained, pictures, tmp_path):
    from diffusers import AutoencoderKL

    module = trained(KL())
    save(module, tmp_path / "codec", pictures)
    model = AutoencoderKL.from_pretrained(tmp_path / "codec")
    z = model.encode(pictures).latent_dist.mode()
    with torch.no_grad():
        assert torch.equal(model.decode(z).sample, module.reconstruct(pictures)[0])


def test_scale_makes_latents_of_mean_zero_and_deviation_one(trained, pictures, tmp_path):
    """With the mean and the variance of the posterior, as the codec samples it."""
    module = trained(KL())
    with torch.no_grad():  # far from the standard distribution
        module.ema.quant_conv.bias += torch.tensor([4.0, 3, 2, 1, 0.5, 0.1])
    measures = save(module, tmp_path / "codec", pictures)
    codec = VAE(str(tmp_path / "codec"))
    drawn = torch.cat([codec.encode(pictures, torch.Generator().manual_seed(i)) for i in range(200)])
    assert drawn.mean().item() == pytest.approx(0, abs=0.02) and drawn.std().item() == pytest.approx(1, abs=0.02)
    z = drawn / codec.scaling_factor + codec.shift_factor
    values = measures.values()
    for channel in range(3):
        assert values[f"latent_mean/{channel}"] == pytest.approx(z[:, channel].mean().item(), abs=0.05)
        assert values[f"latent_std/{channel}"] == pytest.approx(z[:, channel].std().item(), abs=0.05)
    report = json.loads((tmp_path / "codec" / "measured.json").read_text())
    assert report["step"] == 7 and len(report["latent_std"]) == 3 and report["psnr"] == pytest.approx(values["psnr"])


# What a validation measures


def test_psnr_and_ssim(make_module, pictures):
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    module = make_module()
    values = module.measure_all([pictures[:3], pictures[3:]]).values()
    guess = module.reconstruct(pictures)[0].clamp(-1, 1)
    psnr = [PeakSignalNoiseRatio(data_range=2.0)(guess[i], pictures[i]).item() for i in range(4)]
    assert values["psnr"] == pytest.approx(sum(psnr) / 4, rel=1e-5)
    assert values["ssim"] == pytest.approx(
        StructuralSimilarityIndexMeasure(data_range=2.0)(guess, pictures).item(), abs=1e-5
    )
    assert values["loss_l1"] == pytest.approx((module.reconstruct(pictures)[0] - pictures).abs().mean().item())


def test_distance_of_the_sets_is_named_for_its_features(make_module, pictures):
    from lit_transfusion.evaluation.features import FeatureExtractor

    class Means(FeatureExtractor):
        name = "means"

        def forward(self, images):
            return images.mean((2, 3))

    module = make_module(features=Means())
    assert module.measure_all([pictures]).values()["fd_means"] > 0
    same = module.new_measures()
    _, encoded = module.reconstruct(pictures)
    same.add(pictures, pictures, encoded, {})
    assert same.values()["fd_means"] == pytest.approx(0, abs=1e-6)
    assert same.values()["psnr"] == pytest.approx(106, abs=0.1)  # of equal pictures, by the limit of the error
