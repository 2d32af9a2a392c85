"""Settings for sampling images and text."""

import math
import re
from dataclasses import dataclass, replace

from lit_transfusion.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling images and text.

    Args:
        sampler: One of the noise process (DDPM: ddim, ddpm, dpm++; FlowMatching: euler, heun); null: the first. The
            paper's is ddpm, the ancestral one.
        num_inference_steps: Number of denoising steps (paper: 250 with ddpm).
        guidance_scale: Weight of the prompt against the null prompt, which has the pictures of the prompt and no text;
            1 is no guidance (paper: 3 in ablations).
        temperature: Temperature for text; 0 always takes the likeliest token.
        max_new_tokens: The most text tokens to write; 0 ends a sample after a forced image.
        max_images: The most images to draw in one sample.
        seed: Seed for noise and text. Sample i depends on seed + i, and not on the other samples of its batch.
        top_k: Choose text among this many likeliest tokens; null for all.
        top_p: Choose text among the fewest likeliest tokens whose probabilities sum to at least this share.
        guidance_rescale: How far to rescale a guided prediction to the contrast of the unguided one, 0 to 1
            (φ of Lin et al., 2024).
        guidance_interval: First and last timestep with guidance, as shares of T; 0 is clean, 1 is noise
            (Kynkäänniemi et al., 2024).
        negative_prompt: Text to steer away from, used in the null prompt.
        size: Size of the images to draw, WIDTHxHEIGHT in pixels, such as 96x64; null draws images of the size of the
            last picture of the prompt, or squares as in training if there is none.
        image_temperature: Temperature for images as tokens (NextToken); 0 always takes the likeliest code.
        image_top_k: Choose codes among this many likeliest ones; null for all.
    """

    sampler: str | None = None
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
    size: str | None = None
    image_temperature: float = 1.0
    image_top_k: int | None = None

    def __post_init__(self) -> None:
        """Check the values; the noise process checks `sampler` and `num_inference_steps` when sampling starts."""
        for name in ("guidance_scale", "temperature", "image_temperature", "max_new_tokens", "max_images"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} {getattr(self, name)} is invalid: it must be finite and at least 0")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} is invalid: it must be at least 0 and less than 2^63")
        for name in ("top_k", "image_top_k"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is invalid: it must be at least 1, or null for all")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} is invalid: it must be above 0 and at most 1")
        if not 0 <= self.guidance_rescale <= 1:
            raise InputError(f"guidance_rescale {self.guidance_rescale} is invalid: it must be between 0 and 1")
        first, last = self.guidance_interval
        if not 0 <= first <= last <= 1:
            raise InputError(
                f"guidance_interval {first}, {last} is invalid: both must be between 0 and 1, the smaller one first"
            )

        if self.size is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.size):
            raise InputError(f"size {self.size!r} is invalid: use WIDTHxHEIGHT in pixels, such as 96x64")

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """`size` in pixels."""
        if self.size is None:
            return None
        width, height = map(int, self.size.split("x"))
        return height, width

    def one_image(self) -> "Sampling":
        """The same settings for exactly one forced image, and nothing after it."""
        return replace(self, max_new_tokens=0, max_images=1)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1

    def guides_at(self, share: float) -> bool:
        """Whether guidance applies at this share of T."""
        first, last = self.guidance_interval
        return self.guided and first <= share <= last
