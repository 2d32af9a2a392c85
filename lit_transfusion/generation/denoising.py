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
    timesteps, done = scheduler.timesteps.tolist(), 0
    for calls, timestep in enumerate(timesteps, 1):
        if sampling.guides_at(timestep / noise.num_train_timesteps):
            prompted, null = decoder.predict_images(latents.repeat(2, 1, 1, 1), timestep).chunk(2)
            prediction = guide(prompted, null, sampling.guidance_scale, sampling.guidance_rescale)
        else:
            prediction = decoder.predict_images(latents, timestep)
        latents = scheduler.step(prediction, timestep, latents, generator=list(generators)).prev_sample
        before, done = done, calls * sampling.num_inference_steps // len(timesteps)  # a step may be several calls
        if on_step is not None and done > before:
            on_step(before, latents)
    return latents
