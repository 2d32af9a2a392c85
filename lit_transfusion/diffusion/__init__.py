"""Noise processes and their samplers."""

from lit_transfusion.diffusion.ddpm import DDPM
from lit_transfusion.diffusion.flow_matching import FlowMatching
from lit_transfusion.diffusion.next_token import NextToken
from lit_transfusion.diffusion.process import GaussianProcess, NoiseProcess, Scheduler

__all__ = ["DDPM", "FlowMatching", "GaussianProcess", "NextToken", "NoiseProcess", "Scheduler"]
