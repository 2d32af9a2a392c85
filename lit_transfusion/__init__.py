"""lit_transfusion: one Transformer for text tokens and diffused images, after Zhou et al. (arXiv 2408.11039)."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from lit_transfusion import Pipeline`, imported when it is asked for: the net alone needs torch alone."""
    if name == "Pipeline":
        from lit_transfusion.generation.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
