"""The modules that define all classes which YAML and the command line can name by their short class names.

jsonargparse finds a short name among the subclasses of classes that are imported. So a module that adds a source, a
metric or a callback must be listed here.
"""

import importlib
from collections.abc import Iterable

PARTS = (
    "data.sources",
    "diffusion",
    "evaluation",
    "latents",
    "model",
    "shapes.captions",
    "shapes.edits",
    "shapes.geneval",
    "shapes.source",
)
TRAINING_PARTS = ("training.callbacks", "training.fsdp", "training.optim")  # they import Lightning: seconds


def import_all(modules: Iterable[str]) -> None:
    """Import modules of this package."""
    for module in modules:
        importlib.import_module(f"lit_transfusion.{module}")
