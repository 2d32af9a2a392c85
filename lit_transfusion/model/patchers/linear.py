"""The linear patcher: one matrix in, one matrix out."""

from torch import Tensor, nn

from lit_transfusion.model.patchers.base import Patcher


class LinearPatcher(Patcher):
    """Maps k × k latent pixels to one vector and back by linear layers (paper, 3.2; "Linear" in its Tables 5–7).

    The timestep embedding is added at width D, after the linear layer: the paper's footnote 6 adds it "before the
    linear layer", but its parameter counts (Table 7: 0.3–0.5 %) fit an embedding of width D and nothing smaller.

    Args:
        latent_channels: Channels C of the images (set by the data module's codec).
        dim: Width D of the Transformer (set by the model's size).
        patch_size: Side k of a patch in latent pixels; the image's height and width must be multiples of it.
        positions: Number of rows and columns of patches that have a learned position (see `learn_positions`); 0 for
            none, as in the paper.
    """

    def __init__(self, latent_channels: int = 3, dim: int = 128, patch_size: int = 2, positions: int = 0) -> None:
        super().__init__(latent_channels, dim, patch_size)
        self.proj_in = nn.Linear(latent_channels * patch_size**2, dim)
        self.proj_out = nn.Linear(dim, latent_channels * patch_size**2)
        self.learn_positions(positions)

    def patchify(self, noisy_images: Tensor, t_emb: Tensor) -> tuple[Tensor, None]:
        self.check(*noisy_images.shape[2:])
        k = self.patch_size  # not pixel_unshuffle, which does not reshape an empty batch
        patches = noisy_images.unflatten(3, (-1, k)).unflatten(2, (-1, k))  # (N, C, rows, k, columns, k)
        patches = self.proj_in(patches.permute(0, 2, 4, 1, 3, 5).flatten(3))  # (N, rows, columns, D)
        return self.add_positions(patches).flatten(1, 2) + t_emb[:, None], None  # (N, P, D), raster order

    def unpatchify(self, hidden: Tensor, t_emb: Tensor, skips: None, grid: tuple[int, int]) -> Tensor:
        k = self.patch_size
        patches = self.proj_out(hidden).unflatten(2, (-1, k, k)).unflatten(1, grid)  # (N, rows, columns, C, k, k)
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (N, C, H, W)
