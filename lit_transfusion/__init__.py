"""lit_transfusion: one Transformer for text tokens and diffused images, after Zhou et al. (arXiv 2408.11039)."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `Pipeline` only when it is used, so that `import lit_transfusion.model` needs nothing but torch."""
    if name == "Pipeline":
        from lit_transfusion.generation.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
