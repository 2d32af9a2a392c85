"""Patchers convert images to patch vectors and back. YAML chooses one; a subclass of `Patcher` adds one."""

from lit_transfusion.model.patchers.base import Patcher
from lit_transfusion.model.patchers.linear import LinearPatcher
from lit_transfusion.model.patchers.no_patcher import NoPatcher
from lit_transfusion.model.patchers.unet import UNetPatcher

__all__ = ["LinearPatcher", "NoPatcher", "Patcher", "UNetPatcher"]
