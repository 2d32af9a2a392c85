"""lit_transfusion: one Transformer for text tokens and diffused images, after Zhou et al. (arXiv 2408.11039)."""

__version__ = "0.1.0"
