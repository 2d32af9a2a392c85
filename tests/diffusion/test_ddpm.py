"""Tests of the noise process against closed forms, and of its samplers against an oracle and the loop of diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from lit_transfusion.data.types import NO_LIMIT
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers under NumPy 2
T = 1000
prediction_types = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
samplers = pytest.mark.parametrize("name", DDPM.samplers)


def cosine_alpha_bar(s=0.008, largest_beta=0.999):
    """Return ᾱ_0 … ᾱ_{T-1} of Nichol & Dhariwal (2021), Equation 17 and the text after it, in float64."""
    alpha_bar, product = [], 1.0
    for t in range(T):
        now, then = (math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 for t in (t, t + 1))
        product *= 1 - min(1 - then / now, largest_beta)
        alpha_bar.append(product)
    return torch.tensor(alpha_bar, dtype=torch.float64)


ALPHA_BAR = cosine_alpha_bar()


def signal_and_noise(t):
    """Return √ᾱ_t and √(1 - ᾱ_t), (N, 1, 1, 1)."""
    return ALPHA_BAR[t, None, None, None].sqrt(), (1 - ALPHA_BAR[t, None, None, None]).sqrt()


def pictures(n=2, seed=0):
    """Return clean images in [-1, 1], and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 4, 4, generator=generator) * 2 - 1
    return images, torch.randn(images.shape, generator=generator)


def test_add_noise_is_the_closed_form_of_the_cosine_schedule():
    process, every_t = DDPM(), torch.arange(T)
    ones, zeros = torch.ones(T, 1, 1, 1), torch.zeros(T, 1, 1, 1)
    signal, noise = process.add_noise(ones, zeros, every_t).flatten(), process.add_noise(zeros, ones, every_t).flatten()
    torch.testing.assert_close(signal.double(), ALPHA_BAR.sqrt(), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(noise.double(), (1 - ALPHA_BAR).sqrt(), atol=1e-5, rtol=1e-3)
    assert signal[0] > 0.9999 and noise[-1] > 0.9999  # from almost clean to noise
    images, noise = pictures()
    t = torch.tensor([10, 700])
    a, b = signal_and_noise(t)
    expected = a * images + b * noise
    torch.testing.assert_close(process.add_noise(images, noise, t), expected.float(), atol=1e-5, rtol=1e-4)


def test_signal_to_noise_ratio_is_one_at_half_of_the_timesteps():
    """This is the paper's limit, t = 500, for image-first documents."""
    assert (ALPHA_BAR[499] / (1 - ALPHA_BAR[499])).item() == pytest.approx(1, abs=0.03)


@prediction_types
def test_targets_equal_their_formulas(prediction_type):
    images, noise = pictures()
    t = torch.tensor([10, 700])
    a, b = signal_and_noise(t)
    expected = {"epsilon": noise, "v_prediction": a * noise - b * images, "sample": images}[prediction_type]
    target = DDPM(prediction_type=prediction_type).target(images, noise, t)
    torch.testing.assert_close(target, expected.float(), atol=1e-5, rtol=1e-4)


@prediction_types
def test_clean_image_follows_from_noisy_image_and_target(prediction_type):
    """The target contains the same noise as the input."""
    process, (images, noise), t = DDPM(prediction_type=prediction_type), pictures(), torch.tensor([30, 600])
    noisy, target = process.add_noise(images, noise, t), process.target(images, noise, t)
    a, b = signal_and_noise(t)
    clean = {"epsilon": (noisy - b * target) / a, "v_prediction": a * noisy - b * target, "sample": target}
    torch.testing.assert_close(clean[prediction_type].float(), images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("cap", "count"), [(0, 1), (9, 10), (499, 500), (999, 1000), (1000, 1000), (NO_LIMIT, 1000)])
def test_timesteps_are_uniform_up_to_and_including_the_cap(cap, count):
    per_value = 200
    timesteps = DDPM().draw_timesteps(torch.full((count * per_value,), cap), torch.Generator().manual_seed(0))
    assert timesteps.dtype == torch.int64
    counts = timesteps.bincount().double()
    assert len(counts) == count and counts.min() > 0  # 0 and the cap are drawn, and nothing larger
    chi_square = ((counts - per_value).square() / per_value).sum().item()
    assert abs(chi_square - (count - 1)) <= 5 * math.sqrt(2 * count)


def test_each_image_has_its_own_cap():
    caps = torch.tensor([0, 3, NO_LIMIT]).repeat(2000)
    drawn = DDPM(num_train_timesteps=50).draw_timesteps(caps, torch.Generator().manual_seed(0)).view(-1, 3)
    assert drawn.amax(0).tolist() == [0, 3, 49]
    assert drawn.amin(0).tolist() == [0, 0, 0]


def oracle(process, images, noisy, t):
    """Return what a perfect net predicts for a noisy image at t."""
    a, b = ALPHA_BAR[t].sqrt().item(), (1 - ALPHA_BAR[t]).sqrt().item()
    return process.target(images, (noisy - a * images) / b, torch.full((len(images),), t))


def draw_with_oracle(process, name, steps, images, latents):
    sampler, generator = process.sampler(name, steps), torch.Generator().manual_seed(0)
    latents = latents * sampler.init_noise_sigma
    for t in sampler.timesteps.tolist():
        latents = sampler.step(oracle(process, images, latents, t), t, latents, generator=generator).prev_sample
    return latents


@samplers
@prediction_types
@pytest.mark.parametrize("steps", [1, 2, 50, 250])
def test_oracle_leads_to_the_clean_image(name, prediction_type, steps):
    process, (images, noise) = DDPM(prediction_type=prediction_type), pictures()
    found = draw_with_oracle(process, name, steps, images, noise)
    # One step from t = 999 divides float32's error in the noise by √ᾱ = 5e-5.
    torch.testing.assert_close(found, images, atol=1e-2 if steps == 1 else 1e-4, rtol=0)


@samplers
@pytest.mark.parametrize("steps", [7, 600])
def test_oracle_leads_to_it_in_a_number_of_steps_that_does_not_divide_t(name, steps):
    process, (images, noise) = DDPM(prediction_type="sample"), pictures()
    torch.testing.assert_close(draw_with_oracle(process, name, steps, images, noise), images, atol=1e-4, rtol=0)


@samplers
@pytest.mark.parametrize("steps", [1, 7, 50, 600, 980])
@pytest.mark.parametrize(("prediction_type", "first"), [("epsilon", 979), ("v_prediction", T - 1), ("sample", T - 1)])
def test_sampling_timesteps_descend_from_the_highest_usable_one(name, steps, prediction_type, first):
    """With a predicted noise it starts below T - 1, where the image would be divided by almost zero."""
    timesteps = DDPM(prediction_type=prediction_type).sampler(name, steps).timesteps.tolist()
    assert timesteps[0] == first and timesteps[-1] >= 0
    assert len(timesteps) == steps
    assert timesteps == sorted(set(timesteps), reverse=True)


@prediction_types
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_equals_that_of_song_et_al(prediction_type, clip):
    """Equation 12 with σ = 0, with a net that is not an oracle; the last step goes to ᾱ = 1.

    After clipping, the noise is computed again from x and the clipped image.
    """
    sampler = DDPM(prediction_type=prediction_type, clip_sample=clip).sampler("ddim", 50)
    latents = pictures()[1]
    timesteps = sampler.timesteps.tolist()
    for t, before in zip(timesteps, [*timesteps[1:], None], strict=True):
        prediction = torch.tanh(latents) * 0.9
        stepped = sampler.step(prediction, t, latents).prev_sample
        now, then = ALPHA_BAR[t].item(), 1.0 if before is None else ALPHA_BAR[before].item()
        clean, noise = clean_and_noise(prediction_type, latents.double(), prediction.double(), now)
        if clip:
            clean = clean.clamp(-1, 1)
            noise = (latents.double() - math.sqrt(now) * clean) / math.sqrt(1 - now)
        expected = math.sqrt(then) * clean + math.sqrt(1 - then) * noise
        torch.testing.assert_close(stepped.double(), expected, atol=1e-4, rtol=1e-2)
        latents = stepped.clamp(-5, 5)


def clean_and_noise(prediction_type, x, guess, alpha_bar):
    """Compute the clean image and the noise in x from a prediction."""
    a, b = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        return (x - b * guess) / a, guess
    if prediction_type == "sample":
        return guess, (x - a * guess) / b
    return a * x - b * guess, b * x + a * guess


@prediction_types
def test_ddpm_sampling_equals_that_of_diffusers_and_of_ho_et_al(prediction_type):
    """250 steps with a net that is not an oracle, against the loop of diffusers and the formula of the posterior."""
    process, (_, latents) = DDPM(prediction_type=prediction_type), pictures()
    ours = process.sampler("ddpm", 250)
    theirs = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    timesteps = ours.timesteps.tolist()
    if prediction_type == "epsilon":
        theirs.set_timesteps(timesteps=timesteps)
        assert timesteps[0] == 979 and timesteps[-1] == 3
    else:
        theirs.set_timesteps(250)
        assert timesteps == theirs.timesteps.tolist() == list(range(999, 0, -4))
    g_ours, g_theirs, g_formula = (torch.Generator().manual_seed(3) for _ in range(3))
    for t, before in zip(timesteps, [*timesteps[1:], None], strict=True):
        prediction = torch.tanh(latents) * 0.9  # bounded, and different at each step
        stepped = ours.step(prediction, t, latents, generator=g_ours).prev_sample
        torch.testing.assert_close(
            stepped, theirs.step(prediction, t, latents, generator=g_theirs).prev_sample, atol=0, rtol=0
        )
        now, then = ALPHA_BAR[t].item(), 1.0 if before is None else ALPHA_BAR[before].item()
        x = latents.double()
        clean, _ = clean_and_noise(prediction_type, x, prediction.double(), now)
        beta = 1 - now / then
        mean = math.sqrt(then) * beta / (1 - now) * clean + math.sqrt(now / then) * (1 - then) / (1 - now) * x
        sigma = math.sqrt((1 - then) / (1 - now) * beta)
        noise = torch.randn(latents.shape, generator=g_formula).double()
        torch.testing.assert_close(stepped.double(), mean + sigma * noise, atol=1e-4, rtol=1e-2)
        latents = stepped.clamp(-5, 5)
    assert sigma == 0


@samplers
def test_the_last_step_adds_no_noise(name):
    """Another generator in the last step gives the same result."""
    sampler, (images, latents) = DDPM(prediction_type="sample").sampler(name, 20), pictures()
    for t in sampler.timesteps.tolist()[:-1]:
        latents = sampler.step(images, t, latents, generator=torch.Generator().manual_seed(0)).prev_sample
    last = sampler.step(images, sampler.timesteps[-1].item(), latents, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(last.prev_sample, images, atol=1e-6, rtol=0)


@samplers
@prediction_types
def test_clip_sample_keeps_pixels_in_range(name, prediction_type):
    """A predicted image that is three times too bright is clipped to white."""
    images = torch.full((1, 3, 4, 4), 3.0)
    for clip, expected in ((True, 1.0), (False, 3.0)):
        process = DDPM(prediction_type=prediction_type, clip_sample=clip)
        found = draw_with_oracle(process, name, 20, images, pictures(1)[1])
        torch.testing.assert_close(found, torch.full_like(images, expected), atol=1e-2, rtol=0)


def test_error_for_an_unknown_sampler_names_the_known_ones():
    with pytest.raises(InputError, match=r"'euler'.*DDPM.*ddim, ddpm, dpm\+\+"):
        DDPM().sampler("euler", 10)


@pytest.mark.parametrize("steps", [0, -1, 51])
def test_number_of_steps_that_training_does_not_have_is_an_error(steps):
    with pytest.raises(InputError, match=rf"num_inference_steps {steps} .*1 and 49"):
        DDPM(num_train_timesteps=50).sampler("ddim", steps)


@samplers
def test_a_small_error_in_the_noise_stays_small(name):
    """A net whose error is one percent must not produce an image of another scale."""
    process, (clean, latents) = DDPM(), pictures()
    sampler = process.sampler(name, 50)
    for t in sampler.timesteps.tolist():
        _, noise = ALPHA_BAR[t].sqrt(), (latents - ALPHA_BAR[t].sqrt() * clean) / (1 - ALPHA_BAR[t]).sqrt()
        latents = sampler.step(1.01 * noise.float(), t, latents.float()).prev_sample
    assert (latents - clean).abs().max() < 0.5


# More noise


def test_shift_changes_the_drawn_timesteps_within_the_same_bounds():
    limits = torch.cat([torch.full((4000,), 1_000_000), torch.full((4000,), 100), torch.zeros(10, dtype=torch.int64)])
    plain, shifted = (
        DDPM(timestep_shift=s).draw_timesteps(limits, torch.Generator().manual_seed(0)) for s in (1.0, 5.0)
    )
    u = plain[:4000] / 1000
    assert (
        shifted[:4000] - 1000 * 5 * u / (1 + 4 * u)
    ).abs().max() <= 6  # the same random numbers, shifted; u is rounded
    assert shifted.min() == 0 and shifted[:4000].max() == 999 and shifted[4000:8000].max() == 100
    assert not shifted[8000:].any()
    assert (shifted[:4000] >= 700).float().mean() == pytest.approx(1 - 0.7 / (5 - 4 * 0.7), abs=0.03)


@pytest.mark.parametrize("timestep_shift", [0.0, -1.0])
def test_shift_that_is_not_positive_is_an_error(timestep_shift):
    with pytest.raises(InputError, match=rf"timestep_shift {timestep_shift} .*above 0"):
        DDPM(timestep_shift=timestep_shift)
