"""Noise processes."""

from lit_transfusion.diffusion.process import DDPM, SAMPLERS, NoiseProcess, Scheduler

__all__ = ["DDPM", "SAMPLERS", "NoiseProcess", "Scheduler"]
