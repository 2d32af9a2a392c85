"""Writing and drawing with a trained net."""

from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.sampler import Sampling, draw, interleave, write

__all__ = ["Pipeline", "Sampling", "draw", "interleave", "write"]
