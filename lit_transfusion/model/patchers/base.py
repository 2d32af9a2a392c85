"""What a patcher has to offer: the only part of the net that knows both pixels and patches."""

from typing import Any

from torch import Tensor, nn

from lit_transfusion.errors import InputError


class Patcher(nn.Module):
    """Turns noisy images into patch vectors for the Transformer, and hidden states back into images (paper, 3.2).

    A subclass is a new way in and out; nothing else in the project needs to know about it. It must accept an empty
    batch (N = 0), so that a step without any image still reaches its parameters on every rank.

    Args:
        latent_channels: Channels C of the images (set by the data module's codec).
        dim: Width D of the Transformer (set by the model's size).
        patch_size: Side of a patch in latent pixels; the image's height and width must be multiples of it.
    """

    def __init__(self, latent_channels: int = 3, dim: int = 128, patch_size: int = 2) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.dim = dim
        self.patch_size = patch_size

    def patchify(self, noisy_images: Tensor, t_emb: Tensor) -> tuple[Tensor, Any]:
        """(N, C, H, W), (N, D) → patches (N, P, D) in raster order, and what `unpatchify` wants to see again."""
        raise NotImplementedError

    def unpatchify(self, hidden: Tensor, t_emb: Tensor, skips: Any, grid: tuple[int, int]) -> Tensor:
        """(N, P, D), (N, D), skips, (rows, columns) with rows · columns = P → (N, C, H, W)."""
        raise NotImplementedError

    def check(self, height: int, width: int) -> None:
        """Refuses an image that does not fall into whole patches."""
        if height % self.patch_size or width % self.patch_size:
            raise InputError(f"image {height}x{width} is not divisible by patch_size {self.patch_size}")
