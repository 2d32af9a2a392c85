"""The patcher of a net in which images are tokens."""

from lit_transfusion.model.patchers.base import Patcher


class NoPatcher(Patcher):
    """No patches: each code of an image is a token with an embedding, like text (Chameleon Team, 2024).

    For `model.noise: NextToken`. It has no parameters.

    Args:
        latent_channels: Channels of the grid of codes (set by the data module's codec).
        dim: Width D of the Transformer (set by the model's size).
    """

    images_are_tokens = True

    def __init__(self, latent_channels: int = 1, dim: int = 128) -> None:
        super().__init__(latent_channels, dim, patch_size=1)
