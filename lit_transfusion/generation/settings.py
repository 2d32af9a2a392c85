"""How images and text are sampled."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from lit_transfusion.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How images and text are sampled.

    Args:
        sampler: ddpm (ancestral, the paper's), ddim or dpm++.
        num_inference_steps: Denoising steps (paper: 250 with ddpm).
        guidance_scale: Weight of the prompt against no prompt; 1 is none (paper: 3 in ablations). No prompt is without
            its text; pictures in it stay.
        temperature: Of text; 0 takes the likeliest token each time.
        max_new_tokens: Text tokens written at most; 0 ends a sample with the image it was made to begin.
        max_images: Images drawn at most in one sample, where the model decides.
        seed: Of noise and text. Sample i depends on seed + i and on nothing else of its batch.
        top_k: Text is chosen among this many of the likeliest tokens; null for all.
        top_p: Text is chosen among the fewest likeliest tokens that have this share of the probability together.
        guidance_rescale: How far a guided prediction is brought back to the contrast of one that is not, 0 to 1
            (φ of Lin et al., 2024).
        guidance_interval: From where to where there is guidance, as shares of T; 0 is clean, 1 is noise
            (Kynkäänniemi et al., 2024).
        negative_prompt: What to steer away from in place of no prompt.
    """

    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 3.0
    temperature: float = 0.0
    max_new_tokens: int = 64
    max_images: int = 1
    seed: int = 0
    top_k: int | None = None
    top_p: float = 1.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        """What only the noise process can judge, sampler and steps, it refuses when the sampling begins."""
        for name in ("guidance_scale", "temperature", "max_new_tokens", "max_images"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} {getattr(self, name)} is not a number from 0 on")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} is not between 0 and 2^63")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k} is less than 1; null takes all tokens")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} is not a share above 0 and up to 1")
        if not 0 <= self.guidance_rescale <= 1:
            raise InputError(f"guidance_rescale {self.guidance_rescale} is not between 0 and 1")
        first, last = self.guidance_interval
        if not 0 <= first <= last <= 1:
            raise InputError(f"guidance_interval {first}, {last} is not a rising pair between 0 and 1")

    def one_image(self) -> "Sampling":
        """The image that each sample is made to begin, and nothing after it."""
        return replace(self, max_new_tokens=0, max_images=1)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1

    def guides_at(self, share: float) -> bool:
        """Whether there is guidance at this share of T."""
        first, last = self.guidance_interval
        return self.guided and first <= share <= last
