"""Tests of flow matching, and of all processes on data whose best prediction is known: a Gaussian."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from lit_transfusion.data.types import NO_LIMIT
from lit_transfusion.diffusion import DDPM, FlowMatching
from lit_transfusion.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers under NumPy 2
prediction_types = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
MEAN, STD = 0.4, 0.25  # of the Gaussian images


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=2):
    return torch.rand(n, 3, 4, 4, generator=generator()) * 2 - 1, torch.randn(n, 3, 4, 4, generator=generator(1))


@prediction_types
def test_noisy_images_and_targets_are_on_a_straight_line(prediction_type):
    process, (images, noise) = FlowMatching(prediction_type=prediction_type), pictures()
    t = torch.tensor([250.0, 800.0])
    share = torch.tensor([0.25, 0.8])[:, None, None, None]
    torch.testing.assert_close(process.add_noise(images, noise, t), images + share * (noise - images))
    expected = {"epsilon": noise, "v_prediction": noise - images, "sample": images}[prediction_type]
    assert torch.equal(process.target(images, noise, t), expected)


def test_uniform_timesteps_fill_the_range_up_to_the_cap():
    caps = torch.tensor([NO_LIMIT, 500, 0]).repeat(5000)
    drawn = FlowMatching().draw_timesteps(caps, generator()).view(-1, 3)
    assert drawn[:, 0].max() <= 1000 and drawn[:, 1].max() <= 500 and not drawn[:, 2].any()
    for values, cap in ((drawn[:, 0], 1000), (drawn[:, 1], 500)):
        shares = values.sort().values / cap
        distance = (shares - torch.arange(5000) / 5000).abs().max()  # Kolmogorov's
        assert distance < 1.95 / math.sqrt(5000)  # p = 0.001


def test_logit_normal_timesteps_have_their_quantiles():
    process = FlowMatching(timestep_density="logit_normal", logit_mean=-0.8, logit_std=0.8)
    drawn = process.draw_timesteps(torch.full((20_000,), NO_LIMIT), generator()) / 1000
    for quantile, normal in ((0.5, 0.0), (0.8413, 1.0), (0.1587, -1.0)):
        expected = 1 / (1 + math.exp(0.8 - 0.8 * normal))
        assert drawn.quantile(quantile).item() == pytest.approx(expected, abs=0.01)


def test_a_shift_moves_training_and_sampling_alike():
    process = FlowMatching(timestep_shift=3.0)
    drawn = process.draw_timesteps(torch.full((20_000,), NO_LIMIT), generator()) / 1000
    assert drawn.median().item() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=0.01)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(process.sampler("euler", 4).timesteps, theirs.timesteps)


def test_euler_equals_that_of_diffusers():
    process, latents = FlowMatching(timestep_shift=2.0), pictures()[1]
    ours, theirs = process.sampler("euler", 7), FlowMatchEulerDiscreteScheduler(shift=2.0)
    theirs.set_timesteps(sigmas=[1 - i / 7 for i in range(7)])
    other = latents
    for mine, t in zip(ours.timesteps.tolist(), theirs.timesteps, strict=True):
        latents = ours.step(torch.tanh(latents) * 0.9, mine, latents).prev_sample
        other = theirs.step(torch.tanh(other) * 0.9, t, other).prev_sample
        torch.testing.assert_close(latents, other)


def best_prediction(process, z, t):
    """What a perfect net predicts for noisy images of Gaussian data, from E[x | z] and E[ε | z]."""
    alpha, sigma = (scale.double() for scale in process.coefficients(torch.tensor([t])))
    z = z.double()
    clean = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z - alpha * MEAN)
    noise = (z - alpha * clean) / sigma
    return process.target(clean, noise, torch.full((len(z),), t))


SAMPLERS = [
    *((FlowMatching, name, steps) for name, steps in (("euler", 200), ("heun", 40))),
    *((DDPM, name, steps) for name, steps in (("ddim", 200), ("ddpm", 500), ("dpm++", 50))),
]


@prediction_types
@pytest.mark.parametrize(("kind", "name", "steps"), SAMPLERS)
def test_every_sampler_recovers_a_gaussian(kind, name, steps, prediction_type):
    process = kind(prediction_type=prediction_type)
    sampler, noise = process.sampler(name, steps), torch.randn(20_000, 1, 1, 1, generator=generator())
    latents, random = noise * sampler.init_noise_sigma, generator(1)
    for t in sampler.timesteps.tolist():
        prediction = best_prediction(process, latents, t).to(latents.dtype)
        latents = sampler.step(prediction, t, latents, generator=random).prev_sample
    assert latents.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert latents.std().item() == pytest.approx(STD, rel=0.05)


@prediction_types
@pytest.mark.parametrize("name", FlowMatching.samplers)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_net_that_knows_the_image_leads_to_it(name, steps, prediction_type):
    process, (images, latents) = FlowMatching(prediction_type=prediction_type), pictures()
    sampler = process.sampler(name, steps)
    assert len(sampler.timesteps) == (steps if name == "euler" else 2 * steps - 1)
    for t in sampler.timesteps.tolist():
        share = t / 1000
        noise = (latents - (1 - share) * images) / share
        prediction = process.target(images, noise, torch.tensor([t]))
        latents = sampler.step(prediction, t, latents).prev_sample
    torch.testing.assert_close(latents, images, atol=1e-4, rtol=1e-4)


def test_heun_is_of_second_order():
    """Half the steps: a quarter of the error, and half of it with Euler."""
    process = FlowMatching()

    def error(name, steps):
        sampler, latents = process.sampler(name, steps), torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
        for t in sampler.timesteps.double().tolist():
            latents = sampler.step(best_prediction(process, latents, t), t, latents).prev_sample
        return abs(latents.item() - (MEAN + 2.0 * STD))  # the exact flow maps quantile to quantile

    assert error("euler", 40) / error("euler", 80) == pytest.approx(2, rel=0.1)
    assert error("heun", 40) / error("heun", 80) == pytest.approx(4, rel=0.15)


@prediction_types
@pytest.mark.parametrize("name", FlowMatching.samplers)
def test_clip_sample_keeps_pixels_in_range(name, prediction_type):
    images = torch.full((1, 3, 4, 4), 3.0)
    for clip, expected in ((True, 1.0), (False, 3.0)):
        process = FlowMatching(prediction_type=prediction_type, clip_sample=clip)
        sampler, latents = process.sampler(name, 20), pictures(1)[1]
        for t in sampler.timesteps.tolist():
            share = t / 1000
            target = process.target(images, (latents - (1 - share) * images) / share, torch.tensor([t]))
            latents = sampler.step(target, t, latents).prev_sample
        torch.testing.assert_close(latents, torch.full_like(images, expected), atol=1e-3, rtol=0)


# Weights of the loss


@pytest.mark.parametrize("kind", [DDPM, FlowMatching])
@pytest.mark.parametrize("loss_type", ["epsilon", "v_prediction", "sample"])
@prediction_types
def test_loss_type_measures_the_error_in_that_space(kind, prediction_type, loss_type):
    """A prediction is converted to the other space, and its error there is the weighted error of the prediction."""
    process = kind(prediction_type=prediction_type, loss_type=loss_type)
    images, noise = (x.double() for x in pictures(4))
    t = torch.tensor([100, 300, 600, 900])
    alpha, sigma = (scale.double()[:, None, None, None] for scale in process.coefficients(t))
    # Derivatives of α and σ along the path: for DDPM by the angle whose sine is σ, for flow matching by t.
    d_alpha, d_sigma = (-sigma, alpha) if kind is DDPM else (-torch.ones_like(alpha), torch.ones_like(alpha))
    z = alpha * images + sigma * noise
    exact = {"sample": images, "epsilon": noise, "v_prediction": d_alpha * images + d_sigma * noise}
    wrong = exact[prediction_type] + 0.1 * torch.randn(4, 3, 4, 4, generator=generator(2))
    clean = {
        "sample": lambda: wrong,
        "epsilon": lambda: (z - sigma * wrong) / alpha,
        "v_prediction": lambda: d_sigma * z - sigma * wrong,
    }[prediction_type]()
    guessed_noise = (z - alpha * clean) / sigma
    guess = {"sample": clean, "epsilon": guessed_noise, "v_prediction": d_alpha * clean + d_sigma * guessed_noise}
    error = (guess[loss_type] - exact[loss_type]).square().flatten(1).mean(1)
    predicted_error = (wrong - exact[prediction_type]).square().flatten(1).mean(1)
    torch.testing.assert_close(process.weight(t).double() * predicted_error, error, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", [DDPM, FlowMatching])
@prediction_types
def test_weights_are_those_of_the_papers(kind, prediction_type):
    t = torch.tensor([100, 300, 600, 900])
    alpha, sigma = kind().coefficients(t)
    snr = (alpha / sigma).square()
    # An error in the clean image, per error in the prediction.
    per_error = {"sample": torch.ones(4), "v_prediction": sigma.square(), "epsilon": 1 / snr}[prediction_type]
    weight = kind(prediction_type=prediction_type, loss_weighting="min_snr", min_snr_gamma=4.0).weight(t)
    torch.testing.assert_close(weight, per_error * snr.clamp(max=4.0))

    process = kind(prediction_type=prediction_type, loss_weighting="sigmoid", sigmoid_bias=-2.0)
    step = 1e-3
    later, earlier = (kind().coefficients(t + sign) for sign in (1, -1))
    slope = ((later[0] / later[1]).log() - (earlier[0] / earlier[1]).log()) * 2 / (2 * step)
    on_noise = -0.5 * slope * torch.sigmoid(-2.0 - snr.log())
    torch.testing.assert_close(process.weight(t), per_error * snr * on_noise, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", [DDPM, FlowMatching])
@pytest.mark.parametrize("weighting", ["none", "min_snr", "sigmoid"])
@pytest.mark.parametrize("loss_type", [None, "epsilon", "v_prediction", "sample"])
@prediction_types
def test_weights_are_finite_at_both_ends(kind, prediction_type, loss_type, weighting):
    process = kind(prediction_type=prediction_type, loss_type=loss_type, loss_weighting=weighting)
    weights = process.weight(torch.tensor([0, 999]))
    assert weights.isfinite().all() and (weights > 0).all() and weights.max() < 1e6


def test_weights_of_the_paper_are_one():
    assert torch.equal(DDPM().weight(torch.arange(1000)), torch.ones(1000))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"timestep_shift": 0.0}, "timestep_shift 0.0"),
        ({"logit_std": -1.0}, "logit_std -1.0"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma 0.0"),
    ],
)
def test_values_that_are_not_positive_are_errors(options, key):
    with pytest.raises(InputError, match=rf"model.noise.{key} .*above 0"):
        FlowMatching(**options)


def test_unknown_sampler_and_no_steps_are_errors():
    with pytest.raises(InputError, match=r"'ddim'.*FlowMatching.*euler, heun"):
        FlowMatching().sampler("ddim", 10)
    with pytest.raises(InputError, match=r"num_inference_steps 0 .*at least 1"):
        FlowMatching().sampler("euler", 0)
    assert len(FlowMatching().sampler(None, 5).timesteps) == 5  # the default
