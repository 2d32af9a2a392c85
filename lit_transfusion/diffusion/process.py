"""The interface of noise processes, and the weights of their losses.

Timesteps run from 0 (clean) to T (noise), as in diffusers: integers for DDPM, any number in [0, T] for a process in
continuous time.

A Gaussian process mixes a clean image x with noise ε: z = α_t · x + σ_t · ε. What the net predicts and the space in
which its error is measured are separate choices. The velocity is the derivative v = α'_t · x + σ'_t · ε along a path
with α σ' - σ α' = 1. An error in x is then σ times the error in v, and σ / α times the error in ε. So another space for
the loss is only a weight of each image.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from lit_transfusion.errors import InputError

Prediction = Literal[
    "epsilon", "v_prediction", "sample"
]  # the noise, the velocity, or the clean image; diffusers' words
LossWeighting = Literal["none", "min_snr", "sigmoid"]

SMALLEST = 0.05  # smallest α and σ in the weights of losses, which divide by them (Li & He, 2025, JiT)


class Denoised(Protocol):
    """The result of a step of a scheduler."""

    @property
    def prev_sample(self) -> Tensor:
        """(N, C, H, W), at the next timestep."""


class Scheduler(Protocol):
    """The interface of the schedulers of diffusers that sampling uses. Their base class declares none of it."""

    timesteps: Tensor  # of the calls of the net, descending
    init_noise_sigma: float  # standard deviation of the latents at the first timestep

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Denoised: ...


class NoiseProcess:
    """Base class of noise processes. The training step and the sampler use it; it handles tensors only."""

    num_train_timesteps: int  # T
    samplers: tuple[str, ...] = ("default",)  # the first is the default
    images_are_tokens: bool = False  # whether images are codes instead of latents with noise

    def draw_timesteps(self, max_timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Draw (N,) timesteps, one for each image, up to and including (N,) upper bounds (paper, 3.3)."""
        raise NotImplementedError

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Add noise (N, C, H, W) to clean images (N, C, H, W) at (N,) timesteps."""
        raise NotImplementedError

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the net is trained to predict from the noisy images, (N, C, H, W)."""
        raise NotImplementedError

    def weight(self, timesteps: Tensor) -> Tensor:
        """Return the (N,) weights of the squared errors of predictions at (N,) timesteps; 1 as in the paper."""
        return torch.ones(timesteps.shape, device=timesteps.device)

    def sampler(self, name: str | None, num_inference_steps: int) -> Scheduler:
        """Return a scheduler with its timesteps set, ready for `step`.

        Args:
            name: One of `samplers`; None for the first.
            num_inference_steps: Number of steps.

        Raises:
            InputError: The sampler is unknown, or cannot make this number of steps.
        """
        raise NotImplementedError

    def check_sampler(self, name: str | None, num_inference_steps: int) -> None:
        """Raise InputError if the sampler is unknown, or cannot make this number of steps."""
        self.sampler(name, num_inference_steps)

    def known_sampler(self, name: str | None) -> str:
        """Return the name of a sampler, or of the default one for None.

        Raises:
            InputError: The sampler is unknown.
        """
        if name is None:
            return self.samplers[0]
        if name not in self.samplers:
            raise InputError(
                f"sampler {name!r} is not one of {type(self).__name__}; use one of {', '.join(self.samplers)}"
            )
        return name


class GaussianProcess(NoiseProcess):
    """A process z = α_t · x + σ_t · ε with α σ' - σ α' = 1 along its path, and the weights of its loss.

    Args:
        num_train_timesteps: T.
        clip_sample: Whether sampling clips its estimate of the clean image to [-1, 1].
        timestep_shift: s of `shifted`, above 0.
        prediction_type: What the net predicts: the noise (`epsilon`), the velocity (`v_prediction`), or the clean image
            (`sample`).
        loss_type: The space of the squared error: one of the same three, or null for that of the prediction.
        loss_weighting: Weight of each image by its timestep: `none`; `min_snr`, min(SNR, γ) of the error in the clean
            image (Hang et al., 2023); or `sigmoid`, sigmoid(b - log SNR) of the error in the noise, with the density of
            log SNR divided out (Hoogeboom et al., 2024). The last two do not depend on `loss_type`.
        min_snr_gamma: γ of `min_snr`.
        sigmoid_bias: b of `sigmoid`.
    """

    def __init__(
        self,
        num_train_timesteps: int,
        clip_sample: bool,
        timestep_shift: float,
        prediction_type: Prediction,
        loss_type: Prediction | None,
        loss_weighting: LossWeighting,
        min_snr_gamma: float,
        sigmoid_bias: float,
    ) -> None:
        check_positive("timestep_shift", timestep_shift, 1)
        check_positive("min_snr_gamma", min_snr_gamma, 5)
        self.num_train_timesteps = num_train_timesteps
        self.clip_sample = clip_sample
        self.timestep_shift = timestep_shift
        self.prediction_type = prediction_type
        self.loss_type = loss_type
        self.loss_weighting = loss_weighting
        self.min_snr_gamma = min_snr_gamma
        self.sigmoid_bias = sigmoid_bias

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ at (N,) timesteps, (N,) each in float32."""
        raise NotImplementedError

    def log_snr_slope(self, timesteps: Tensor) -> Tensor:
        """Return the derivative of log SNR = log(α² / σ²) by t / T at (N,) timesteps, (N,); it is negative."""
        raise NotImplementedError

    def weight(self, timesteps: Tensor) -> Tensor:
        loss_type = self.loss_type or self.prediction_type
        if self.loss_weighting == "none" and loss_type == self.prediction_type:
            return super().weight(timesteps)
        alpha, sigma = (scale.clamp(min=SMALLEST) for scale in self.coefficients(timesteps))
        # An error in the clean image, per error in each of the three.
        errors = {"sample": torch.ones_like(sigma), "v_prediction": sigma, "epsilon": sigma / alpha}
        predicted = errors[self.prediction_type]
        if self.loss_weighting == "none":
            return (predicted / errors[loss_type]).square()
        snr = (alpha / sigma).square()
        if self.loss_weighting == "min_snr":
            return predicted.square() * snr.clamp(max=self.min_snr_gamma)
        slope = self.log_snr_slope(timesteps)
        return predicted.square() * snr * -0.5 * slope * torch.sigmoid(self.sigmoid_bias - snr.log())


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move t in [0, 1] towards 1 if the shift is above 1; 0 and 1 stay (Esser et al., 2024, Equation 23)."""
    return shift * t / (1 + (shift - 1) * t)


def check_positive(name: str, value: float, usual: float) -> None:
    if value <= 0:
        raise InputError(f"model.noise.{name} {value} is invalid: it must be above 0; {usual} is usual")
