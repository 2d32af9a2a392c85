"""Metrics of a trained model, named by their short class names in YAML and on the command line."""

from typing import Any

from lit_transfusion.evaluation.caption_use import CaptionUseGap
from lit_transfusion.evaluation.captions import BLEU, CIDEr
from lit_transfusion.evaluation.clip_score import CLIPScore
from lit_transfusion.evaluation.code_loss import CodeLoss
from lit_transfusion.evaluation.diffusion_loss import DiffusionLoss
from lit_transfusion.evaluation.image_share import ImageShare
from lit_transfusion.evaluation.metric import Metric
from lit_transfusion.evaluation.perplexity import Perplexity
from lit_transfusion.evaluation.pictures import FID, KID
from lit_transfusion.evaluation.ranked_captions import RankedCaptions
from lit_transfusion.evaluation.ranked_classification import RankedClassification
from lit_transfusion.evaluation.recaption import RecaptionConsistency
from lit_transfusion.evaluation.text_perplexity import TextPerplexity

__all__ = [
    "BLEU",
    "FID",
    "KID",
    "CIDEr",
    "CLIPScore",
    "CaptionUseGap",
    "CodeLoss",
    "DiffusionLoss",
    "EfficientNetLite0",
    "ImageShare",
    "Inception",
    "Metric",
    "Perplexity",
    "RankedCaptions",
    "RankedClassification",
    "RecaptionConsistency",
    "TextPerplexity",
]


def __getattr__(name: str) -> Any:
    """Import the nets for FID and KID only when they are used, since they need torch."""
    if name in ("EfficientNetLite0", "Inception"):
        from lit_transfusion.evaluation import features

        return getattr(features, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
