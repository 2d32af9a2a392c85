"""Diffusion mode: from noise to an image at the end of a row (paper, 3.4)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.generation.guidance import guide
from lit_transfusion.generation.settings import Sampling

OnStep = Callable[[int, Tensor], None]  # called with the denoising step just done and the latents (N, C, H, W) so far


def denoise(
    decoder: Decoder, generators: Sequence[torch.Generator], sampling: Sampling, on_step: OnStep | None
) -> Tensor:
    """Clean latents (N, C, H, W) after the first N rows, one for each generator.

    If there is guidance, the next N rows of the decoder hold what stands in place of their prompts; both halves are
    one batch. Where there is none (yet), only the first are computed.
    """
    noise = decoder.pipeline.noise
    scheduler = noise.sampler(sampling.sampler, sampling.num_inference_steps)
    shape = decoder.pipeline.latent_shape
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(decoder.device)
    latents = latents * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        if sampling.guides_at(timestep / noise.num_train_timesteps):
            prompted, null = decoder.predict_images(latents.repeat(2, 1, 1, 1), timestep).chunk(2)
            prediction = guide(prompted, null, sampling.guidance_scale, sampling.guidance_rescale)
        else:
            prediction = decoder.predict_images(latents, timestep)
        latents = scheduler.step(prediction, timestep, latents, generator=list(generators)).prev_sample
        if on_step is not None:
            on_step(step, latents)
    return latents
