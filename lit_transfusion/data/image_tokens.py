"""Images as tokens: the codes of a codec with a codebook, which follow the vocabulary of the text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.data.types import ImageGroup
from lit_transfusion.latents import Codec


def with_image_tokens(
    tokens: Tensor,
    groups: Sequence[ImageGroup],
    codec: Codec,
    first_code: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A copy of tokens (B, L) with the codes of the images at their positions.

    Args:
        tokens: (B, L) token ids.
        groups: The images of these rows.
        codec: Makes the codes of the images.
        first_code: Id of the token of code 0, which is the size of the vocabulary of the text.
        generator: Generator of a codec that draws random numbers.
    """
    flat = tokens.flatten().clone()  # (B · L)
    for group in groups:
        codes = codec.latents(group.images, generator).flatten().long().to(tokens.device)  # (N · P), image after image
        flat[group.at.flatten().to(tokens.device)] = codes + first_code
    return flat.view_as(tokens)


def positions_before(groups: Sequence[ImageGroup]) -> Tensor:
    """The flattened positions (K,) that predict the codes of the learned images: each is one before its code."""
    return torch.cat([group.at.index_select(0, group.learned).flatten() for group in groups]) - 1
