"""Flow matching (Lipman et al., 2023; rectified flow, Liu et al., 2023): a straight path from image to noise."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_transfusion.diffusion.process import (
    SMALLEST,
    GaussianProcess,
    LossWeighting,
    Prediction,
    Scheduler,
    check_positive,
    shifted,
)
from lit_transfusion.errors import InputError


class FlowMatching(GaussianProcess):
    """z = (1 - t) · x + t · ε with t in [0, 1]; the velocity is ε - x. Timesteps are t · `num_train_timesteps`.

    Args:
        num_train_timesteps: Timestep of pure noise: the unit of timesteps, and of limits such as
            `data.recipe.image_first_max_timestep`.
        prediction_type: What the net predicts: the noise (`epsilon`), the velocity (`v_prediction`), or the clean image
            (`sample`).
        loss_type: The space of the squared error: one of the same three, or null for that of the prediction. JiT
            predicts the clean image with a loss on the velocity.
        loss_weighting: Weight of each image by its timestep: `none`, `min_snr` or `sigmoid` (see `GaussianProcess`).
        min_snr_gamma: γ of `min_snr`.
        sigmoid_bias: b of `sigmoid`.
        timestep_density: How training draws t: `uniform`, or `logit_normal`, the sigmoid of a normal number (Esser et
            al., 2024).
        logit_mean: Mean of that number; larger values draw more noise.
        logit_std: Its standard deviation.
        timestep_shift: t becomes s · t / (1 + (s - 1) · t), in training and in sampling; 1 changes nothing, and larger
            values are for larger images (Esser et al., 2024).
        clip_sample: Whether sampling clips its estimate of the clean image to [-1, 1]: for pixels, not for latents.
    """

    samplers = ("euler", "heun")

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        prediction_type: Prediction = "v_prediction",
        loss_type: Prediction | None = None,
        loss_weighting: LossWeighting = "none",
        min_snr_gamma: float = 5.0,
        sigmoid_bias: float = -1.0,
        timestep_density: Literal["uniform", "logit_normal"] = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        timestep_shift: float = 1.0,
        clip_sample: bool = False,
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
        check_positive("logit_std", logit_std, 1)
        self.timestep_density = timestep_density
        self.logit_mean = logit_mean
        self.logit_std = logit_std

    def draw_timesteps(self, max_timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Draw t, and scale it to [0, min(max_timestep, T)]."""
        shape, device = max_timesteps.shape, max_timesteps.device
        if self.timestep_density == "uniform":
            t = torch.rand(shape, generator=generator, device=device)
        else:
            normal = torch.randn(shape, generator=generator, device=device)
            t = torch.sigmoid(self.logit_mean + self.logit_std * normal)
        return shifted(t, self.timestep_shift) * max_timesteps.clamp(max=self.num_train_timesteps)

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma = timesteps.float() / self.num_train_timesteps
        return 1 - sigma, sigma

    def log_snr_slope(self, timesteps: Tensor) -> Tensor:
        """log SNR = 2 log((1 - t) / t)."""
        alpha, sigma = (scale.clamp(min=SMALLEST) for scale in self.coefficients(timesteps))
        return -2 / (alpha * sigma)

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha, sigma = (scale[:, None, None, None] for scale in self.coefficients(timesteps))
        return alpha * images + sigma * noise

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return {"epsilon": noise, "v_prediction": noise - images, "sample": images}[self.prediction_type]

    def sampler(self, name: str | None, num_inference_steps: int) -> Scheduler:
        name = self.known_sampler(name)
        if num_inference_steps < 1:
            raise InputError(f"num_inference_steps {num_inference_steps} is invalid; use at least 1")
        # The velocity that follows from a predicted noise is divided by 1 - t, so it cannot start at t = 1.
        first = 0.98 if self.prediction_type == "epsilon" else 1.0
        times = torch.linspace(first, 0, num_inference_steps + 1, dtype=torch.float64)
        return FlowSampler(self, shifted(times, self.timestep_shift).tolist(), heun=name == "heun")

    def velocity(self, prediction: Tensor, noisy_images: Tensor, t: float) -> Tensor:
        """Return the velocity that follows from a prediction at t in (0, 1]."""
        if self.prediction_type == "v_prediction":
            if not self.clip_sample:
                return prediction
            clean = noisy_images - t * prediction
        elif self.prediction_type == "epsilon":
            clean = (noisy_images - t * prediction) / (1 - t)
        else:
            clean = prediction
        if self.clip_sample:
            clean = clean.clamp(-1, 1)
        return (noisy_images - clean) / t


class Step(NamedTuple):
    prev_sample: Tensor


class FlowSampler:
    """Integrates the velocity from noise to image by Euler steps, or by Heun's method.

    Heun's method calls the net again at the end of each step but the last, and takes the mean of both velocities: n
    steps are 2n - 1 calls. (diffusers' FlowMatchHeunDiscreteScheduler shifts its timesteps twice.)

    Args:
        process: Converts predictions to velocities.
        times: t at the start of each step, descending, and 0.
        heun: Use Heun's method.
    """

    init_noise_sigma = 1.0

    def __init__(self, process: FlowMatching, times: list[float], heun: bool) -> None:
        self.process = process
        self.times = times
        self.heun = heun
        calls = [times[0], *(t for t in times[1:-1] for _ in range(1 + heun))]
        self.timesteps = torch.tensor(calls) * process.num_train_timesteps
        self._steps = 0  # begun so far
        self._start: tuple[Tensor, Tensor] | None = None  # latents and velocity at the start of an open Heun step

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Step:
        """Return the latents for the next call of the net. The calls must be those of `timesteps`, in order."""
        if self._start is not None:  # the second call of a Heun step
            (latents, first), self._start = self._start, None
            before, t = self.times[self._steps - 1 : self._steps + 1]
            return Step(latents + (t - before) * (first + self.process.velocity(model_output, sample, t)) / 2)
        t, end = self.times[self._steps : self._steps + 2]
        self._steps += 1
        velocity = self.process.velocity(model_output, sample, t)
        if self.heun and end > 0:
            self._start = sample, velocity
        return Step(sample + (end - t) * velocity)
