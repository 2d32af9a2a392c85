"""Noise processes."""

from lit_transfusion.diffusion.process import DDPM, SAMPLERS, NoiseProcess

__all__ = ["DDPM", "SAMPLERS", "NoiseProcess"]
