"""Text and image generation with a trained net."""

from lit_transfusion.generation.editing import edit
from lit_transfusion.generation.engine import Images, draw, generate, write
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.sample_state import Generated, StopReason
from lit_transfusion.generation.settings import Sampling

__all__ = [
    "Generated",
    "Images",
    "Pipeline",
    "Sampling",
    "StopReason",
    "draw",
    "edit",
    "generate",
    "prompt_document",
    "write",
]
