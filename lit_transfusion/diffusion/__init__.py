"""Noise processes and their samplers."""

from lit_transfusion.diffusion.process import DDPM, SAMPLERS, NoiseProcess, Scheduler

__all__ = ["DDPM", "SAMPLERS", "NoiseProcess", "Scheduler"]
