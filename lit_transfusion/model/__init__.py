"""The net. It depends on torch only."""

from lit_transfusion.model.config import SIZES, TransformerConfig
from lit_transfusion.model.patchers import LinearPatcher, NoPatcher, Patcher, UNetPatcher
from lit_transfusion.model.transformer import Transformer
from lit_transfusion.model.transfusion import NoisyImages, Transfusion, TransfusionOutput
from lit_transfusion.model.visibility import Bidirectional, Causal, Visibility

__all__ = [
    "SIZES",
    "Bidirectional",
    "Causal",
    "LinearPatcher",
    "NoPatcher",
    "NoisyImages",
    "Patcher",
    "Transformer",
    "TransformerConfig",
    "Transfusion",
    "TransfusionOutput",
    "UNetPatcher",
    "Visibility",
]
