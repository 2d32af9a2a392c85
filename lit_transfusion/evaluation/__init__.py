"""Metrics of a trained model, named by their short class names in YAML and on the command line."""

from lit_transfusion.evaluation.caption_use import CaptionUseGap
from lit_transfusion.evaluation.captions import BLEU, CIDEr
from lit_transfusion.evaluation.clip_score import CLIPScore
from lit_transfusion.evaluation.diffusion_loss import DiffusionLoss
from lit_transfusion.evaluation.features import EfficientNetLite0, Inception
from lit_transfusion.evaluation.image_share import ImageShare
from lit_transfusion.evaluation.metric import Metric
from lit_transfusion.evaluation.perplexity import Perplexity
from lit_transfusion.evaluation.pictures import FID, KID
from lit_transfusion.evaluation.ranked_captions import RankedCaptions
from lit_transfusion.evaluation.ranked_classification import RankedClassification
from lit_transfusion.evaluation.recaption import RecaptionConsistency

__all__ = [
    "BLEU",
    "FID",
    "KID",
    "CIDEr",
    "CLIPScore",
    "CaptionUseGap",
    "DiffusionLoss",
    "EfficientNetLite0",
    "ImageShare",
    "Inception",
    "Metric",
    "Perplexity",
    "RankedCaptions",
    "RankedClassification",
    "RecaptionConsistency",
]
