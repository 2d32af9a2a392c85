"""How images are noised in training and denoised in sampling, around the schedulers of diffusers."""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lit_transfusion.errors import InputError


class Denoised(Protocol):
    """What a scheduler makes of a prediction."""

    prev_sample: Tensor  # (N, C, H, W), at the next timestep


class Scheduler(Protocol):
    """What sampling asks of a scheduler of diffusers; their base class declares none of it."""

    timesteps: Tensor  # int64, falling
    init_noise_sigma: float  # standard deviation of the latents at the first

    def set_timesteps(self, *, timesteps: list[int]) -> None: ...

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Denoised: ...


SAMPLERS = (
    "ddpm",  # ancestral, the paper's
    "ddim",  # deterministic, good from some 25 steps on
    "dpm++",  # deterministic, second order, good from some 15 steps on
)


class NoiseProcess:
    """What the training step and the sampler need to know about noise. Tensors in, tensors out."""

    num_train_timesteps: int

    def draw_timesteps(self, max_timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) inclusive upper bounds → (N,) timesteps, one for each image (paper, 3.3)."""
        raise NotImplementedError

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean images (N, C, H, W), noise of the same shape, (N,) timesteps → noisy images."""
        raise NotImplementedError

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the net is trained to predict from the noisy images, (N, C, H, W)."""
        raise NotImplementedError

    def sampler(self, name: str, num_inference_steps: int) -> Scheduler:
        """A diffusers scheduler with its timesteps set, ready for `step`."""
        raise NotImplementedError


class DDPM(NoiseProcess):
    """Denoising diffusion (Ho et al., 2020) as the paper has it: cosine schedule, 1,000 steps (section 2.2).

    Args:
        num_train_timesteps: T; timesteps are the integers from 0 (almost clean) to T - 1 (noise).
        beta_schedule: Of diffusers; `squaredcos_cap_v2` is the cosine schedule of Nichol & Dhariwal.
        prediction_type: What the net predicts: the noise (`epsilon`, the paper), `v_prediction`, or the clean image
            (`sample`). In pixel space the last two learn faster.
        clip_sample: Whether sampling clips its estimate of the clean image to [-1, 1]: for pixels, not for latents.
        timestep_shift: Training draws t = s · u / (1 + (s - 1) · u) · T with u uniform; 1 is the paper, more is more
            noise (Esser et al., 2024). What an edit takes from its input is learned at large t, since at
            small t the noisy output itself shows it.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2",
        prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon",
        clip_sample: bool = False,
        timestep_shift: float = 1.0,
    ) -> None:
        if timestep_shift <= 0:
            raise InputError(f"model.noise.timestep_shift {timestep_shift} is not above 0")
        self.num_train_timesteps = num_train_timesteps
        self.beta_schedule = beta_schedule
        self.prediction_type = prediction_type
        self.clip_sample = clip_sample
        self.timestep_shift = timestep_shift
        # Here, since it takes seconds, and the net needs none of it. The short path of the class has no types.
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self._scheduler = DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            clip_sample=clip_sample,
        )

    def draw_timesteps(self, max_timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """From 0 … min(max_timestep, T - 1), both included; uniform unless `timestep_shift` says otherwise."""
        count = max_timesteps.clamp(max=self.num_train_timesteps - 1) + 1
        uniform = torch.rand(max_timesteps.shape, generator=generator, device=max_timesteps.device, dtype=torch.float64)
        shifted = self.timestep_shift * uniform / (1 + (self.timestep_shift - 1) * uniform)
        return (shifted * count).long()

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = √ᾱ_t · x_0 + √(1 - ᾱ_t) · ε (paper, Equation 2)."""
        return self._scheduler.add_noise(images, noise, timesteps)

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise  # paper, Equation 3
        if self.prediction_type == "v_prediction":
            return self._scheduler.get_velocity(images, noise, timesteps)  # √ᾱ_t · ε - √(1 - ᾱ_t) · x_0
        return images

    def sampler(self, name: str, num_inference_steps: int) -> Scheduler:
        if name not in SAMPLERS:
            raise InputError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
        # At T - 1 there is nothing but noise, and a net that predicts the image or v can start there. To get the image
        # from a predicted noise, one would divide by √ᾱ = 0.00005 there; so that starts at 0.98 T, where √ᾱ is 0.03.
        first = (
            round(0.98 * self.num_train_timesteps) if self.prediction_type == "epsilon" else self.num_train_timesteps
        )
        if not 1 <= num_inference_steps <= first:
            raise InputError(f"num_inference_steps {num_inference_steps} is not between 1 and {first}")
        timesteps = torch.linspace(first, 0, num_inference_steps + 1)[:-1].round().long() - 1
        sampler = scheduler_of(name, self._scheduler.config, self.clip_sample)
        sampler.set_timesteps(timesteps=timesteps.tolist())
        return sampler


def scheduler_of(name: str, config: Any, clip_sample: bool) -> Scheduler:
    """The scheduler of diffusers for a sampler, with the settings of a DDPMScheduler.

    DDIM is the first-order DPM-Solver++. diffusers' own DDIMScheduler is wrong where it clips, and stops before the
    clean image where the number of steps does not divide T.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    # For dpm++, which knows no clip_sample: thresholding at its default, a maximum of 1, is the same clipping.
    if name == "ddpm":
        return DDPMScheduler.from_config(config, thresholding=clip_sample)
    order = 1 if name == "ddim" else 2
    return DPMSolverMultistepScheduler.from_config(config, thresholding=clip_sample, solver_order=order)
