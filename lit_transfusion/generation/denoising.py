"""Diffusion mode: denoise an image at the end of each row (paper, 3.4)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.generation.guidance import guide
from lit_transfusion.generation.settings import Sampling

OnStep = Callable[[int, Tensor], None]  # called after each denoising step with its number and the latents (N, C, H, W)


def denoise(
    decoder: Decoder,
    shape: tuple[int, int, int],
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    on_step: OnStep | None,
) -> Tensor:
    """Draw one image of shape (C, H, W) after each of the first N rows, with one generator for each.

    Returns clean latents (N, C, H, W).

    With guidance, the next N rows of the decoder are the null prompts, and both halves are computed as one batch. At
    timesteps without guidance, only the first N rows are computed.
    """
    noise = decoder.pipeline.noise
    scheduler = noise.sampler(sampling.sampler, sampling.num_inference_steps)
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(decoder.device)
    latents = latents * scheduler.init_noise_sigma
    timesteps = scheduler.timesteps.tolist()
    for calls, timestep in enumerate(timesteps, 1):
        if sampling.guides_at(timestep / noise.num_train_timesteps):
            prompted, null = decoder.predict_images(latents.repeat(2, 1, 1, 1), timestep).chunk(2)
            prediction = guide(prompted, null, sampling.guidance_scale, sampling.guidance_rescale)
        else:
            prediction = decoder.predict_images(latents, timestep)
        latents = scheduler.step(prediction, timestep, latents, generator=list(generators)).prev_sample
        report_step(on_step, calls, len(timesteps), sampling.num_inference_steps, latents)
    return latents


def report_step(on_step: OnStep | None, calls: int, of: int, num_steps: int, latents: Tensor) -> None:
    """Call `on_step` if one more of `num_steps` steps is done after this many calls of the net, `of` in all.

    A step may be several calls, and a call several steps.
    """
    before, done = ((number * num_steps) // of for number in (calls - 1, calls))
    if on_step is not None and done > before:
        on_step(done - 1, latents)
