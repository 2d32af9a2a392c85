"""Codecs, which convert pixels to latents and back."""

from lit_transfusion.latents.base import Codec, Moments, Raw
from lit_transfusion.latents.pixels import Pixels
from lit_transfusion.latents.vae import VAE
from lit_transfusion.latents.vq import VQ

__all__ = ["VAE", "VQ", "Codec", "Moments", "Pixels", "Raw"]
