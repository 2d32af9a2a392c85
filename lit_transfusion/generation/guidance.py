"""Classifier-free guidance: away from what would be drawn without the prompt."""

from torch import Tensor


def guide(prompted: Tensor, null: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Predictions (N, C, H, W) under the prompt and without it → ε = ε_null + w · (ε_prompt - ε_null).

    A large w overdoes the contrast; `rescale` (φ) brings that much of it back to the standard deviation under the
    prompt, of each image (Lin et al., 2024, Equations 15 and 16).
    """
    guided = null + scale * (prompted - null)
    if rescale == 0:
        return guided
    contrast = prompted.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guided * (rescale * contrast + 1 - rescale)
