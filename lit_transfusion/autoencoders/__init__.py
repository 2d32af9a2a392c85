"""Training of autoencoders, whose folders are the codecs of a run: continuous (KL) or discrete (VQ, FSQ)."""

from lit_transfusion.autoencoders.bottlenecks import FSQ, KL, VQ, Bottleneck
from lit_transfusion.autoencoders.callbacks import CodecFolder, ShowReconstructions
from lit_transfusion.autoencoders.discriminator import PatchGAN
from lit_transfusion.autoencoders.lit_autoencoder import LitAutoencoder
from lit_transfusion.autoencoders.perceptual import LPIPS, EfficientNetLite0Features, PerceptualLoss
from lit_transfusion.autoencoders.picture_data import PictureData

__all__ = [
    "FSQ",
    "KL",
    "LPIPS",
    "VQ",
    "Bottleneck",
    "CodecFolder",
    "EfficientNetLite0Features",
    "LitAutoencoder",
    "PatchGAN",
    "PerceptualLoss",
    "PictureData",
    "ShowReconstructions",
]
