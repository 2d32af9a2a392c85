"""Denoising diffusion in discrete time, with the schedulers of diffusers."""

from typing import Any, Literal

import torch
from torch import Tensor

from lit_transfusion.diffusion.process import GaussianProcess, LossWeighting, Prediction, Scheduler, shifted
from lit_transfusion.errors import InputError


class DDPM(GaussianProcess):
    """Denoising diffusion (Ho et al., 2020). The defaults are the paper's: cosine schedule, 1,000 steps (section 2.2).

    Args:
        num_train_timesteps: T; timesteps are the integers from 0 (almost clean) to T - 1 (noise).
        beta_schedule: Name in diffusers; `squaredcos_cap_v2` is the cosine schedule of Nichol & Dhariwal.
        prediction_type: What the net predicts: the noise (`epsilon`, the paper), `v_prediction`, or the clean image
            (`sample`). In pixel space the last two learn faster.
        clip_sample: Whether sampling clips its estimate of the clean image to [-1, 1]: for pixels, not for latents.
        loss_type: The space of the squared error: one of the same three, or null for that of the prediction (the
            paper: the noise).
        loss_weighting: Weight of each image by its timestep: `none` (the paper), `min_snr` or `sigmoid` (see
            `GaussianProcess`).
        min_snr_gamma: γ of `min_snr`.
        sigmoid_bias: b of `sigmoid`.
        timestep_shift: Training draws t = s · u / (1 + (s - 1) · u) · T with u uniform; 1 is the paper, and
            larger values draw more noise (Esser et al., 2024). Editing needs large t: at small t the noisy output
            already shows what the model should take from the input.
    """

    samplers = (
        "ddim",  # deterministic, good from about 25 steps
        "ddpm",  # ancestral, the paper's
        "dpm++",  # deterministic, second order, good from about 15 steps
    )

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2",
        prediction_type: Prediction = "epsilon",
        clip_sample: bool = False,
        timestep_shift: float = 1.0,
        loss_type: Prediction | None = None,
        loss_weighting: LossWeighting = "none",
        min_snr_gamma: float = 5.0,
        sigmoid_bias: float = -1.0,
    ) -> None:
        super().__init__(
            num_train_timesteps,
            clip_sample,
            timestep_shift,
            prediction_type,
            loss_type,
            loss_weighting,
            min_snr_gamma,
            sigmoid_bias,
        )
        self.beta_schedule = beta_schedule
        # Here, since it takes seconds, and the net needs none of it. The short path of the class has no types.
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self._scheduler = DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            clip_sample=clip_sample,
        )

    def draw_timesteps(self, max_timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from 0 … min(max_timestep, T - 1), both included; uniform if `timestep_shift` is 1."""
        count = max_timesteps.clamp(max=self.num_train_timesteps - 1) + 1
        uniform = torch.rand(max_timesteps.shape, generator=generator, device=max_timesteps.device, dtype=torch.float64)
        return (shifted(uniform, self.timestep_shift) * count).long()

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = √ᾱ_t · x_0 + √(1 - ᾱ_t) · ε (paper, Equation 2)."""
        return self._scheduler.add_noise(images, noise, timesteps)

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise  # paper, Equation 3
        if self.prediction_type == "v_prediction":
            return self._scheduler.get_velocity(images, noise, timesteps)  # √ᾱ_t · ε - √(1 - ᾱ_t) · x_0
        return images

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self._scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def log_snr_slope(self, timesteps: Tensor) -> Tensor:
        alpha_bar = self._scheduler.alphas_cumprod.double()
        (slope,) = torch.gradient((alpha_bar / (1 - alpha_bar)).log() * self.num_train_timesteps)
        return slope.float().to(timesteps.device)[timesteps]

    def sampler(self, name: str | None, num_inference_steps: int) -> Scheduler:
        name = self.known_sampler(name)
        # At T - 1 the input is only noise, and a net that predicts the image or v can start there. The image that
        # follows from a predicted noise is divided by √ᾱ, which is 0.00005 there. So epsilon starts at 0.98 T, where √ᾱ
        # is 0.03.
        first = (
            round(0.98 * self.num_train_timesteps) if self.prediction_type == "epsilon" else self.num_train_timesteps
        )
        if not 1 <= num_inference_steps <= first:
            raise InputError(
                f"num_inference_steps {num_inference_steps} is not between 1 and {first}; use a number in this range"
            )
        timesteps = torch.linspace(first, 0, num_inference_steps + 1)[:-1].round().long() - 1
        scheduler = new_scheduler(name, self._scheduler.config, self.clip_sample)
        scheduler.set_timesteps(timesteps=timesteps.tolist())
        return scheduler


def new_scheduler(name: str, config: Any, clip_sample: bool) -> Any:
    """Make the scheduler of diffusers for a sampler, with the settings of a DDPMScheduler.

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
