"""The modules that define all classes which YAML and the command line can name by their short class names.

jsonargparse finds a short name among the subclasses of classes that are imported. So a module that adds a source, a
metric or a callback must be listed here.
"""

import importlib
from collections.abc import Iterable, Iterator

from jsonargparse import set_parsing_settings

# Prevents mistakes; this is not a security boundary. A config that you pass can import any other module.
set_parsing_settings(
    import_path_denylist=["os", "subprocess", "shutil", "builtins", "sys", "pty", "runpy", "importlib"]
)

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
TRAINING_PARTS = ("training.callbacks", "training.fsdp", "training.optim", "training.repa")  # Lightning: seconds


def import_all(modules: Iterable[str]) -> None:
    """Import modules of this package."""
    for module in modules:
        importlib.import_module(f"lit_transfusion.{module}")


BASES = {  # last word of a key → the base class of the classes that it can name
    "auxiliary": ("lit_transfusion.training.auxiliary", "AuxiliaryLoss"),
    "bottleneck": ("lit_transfusion.autoencoders", "Bottleneck"),
    "codec": ("lit_transfusion.latents", "Codec"),
    "mask": ("lit_transfusion.model", "Visibility"),
    "metrics": ("lit_transfusion.evaluation", "Metric"),
    "noise": ("lit_transfusion.diffusion", "NoiseProcess"),
    "optimizer": ("torch.optim", "Optimizer"),
    "perceptual": ("lit_transfusion.autoencoders", "PerceptualLoss"),
    "patcher": ("lit_transfusion.model", "Patcher"),
    "scheduler": ("torch.optim.lr_scheduler", "LRScheduler"),
    "source": ("lit_transfusion.data.sources", "Source"),
    "sources": ("lit_transfusion.data.sources", "Source"),  # of a mix
}


def known_classes(key: str) -> list[str]:
    """Short names of the classes that are valid for a key such as model.mask; empty if the key takes no class."""
    name = key.rpartition(".")[2]
    if name == "callbacks":
        module = importlib.import_module("lit_transfusion.training.callbacks")
        return [*module.__all__, "and those of lightning.pytorch.callbacks"]
    if name not in BASES:
        return []
    module, base = BASES[name]
    found = subclasses(getattr(importlib.import_module(module), base))
    return sorted({cls.__name__ for cls in found if not cls.__name__.startswith("_")})


def subclasses(base: type) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)
