"""Classifier-free guidance: steer away from what would be drawn without the prompt."""

from torch import Tensor


def guide(prompted: Tensor, null: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Combine predictions (N, C, H, W) with and without the prompt: ε = ε_null + w · (ε_prompt - ε_null).

    A large w makes the contrast too high. `rescale` (φ) moves this share of each image's prediction back to the
    standard deviation of the prediction with the prompt (Lin et al., 2024, Equations 15 and 16).
    """
    guided = null + scale * (prompted - null)
    if rescale == 0:
        return guided
    contrast = prompted.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guided * (rescale * contrast + 1 - rescale)
