"""Images as tokens: the codes of a codec with a codebook, which follow the vocabulary of the text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.data.types import TEXT, ImageGroup
from lit_transfusion.latents import Codec


def images_as_text(
    tokens: Tensor,
    image_ids: Tensor,
    groups: Sequence[ImageGroup],
    codec: Codec,
    first_code: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Copies of tokens (B, L) with the codes of the images at their positions, and of image ids (B, L) without images.

    A net to which there are no images sees codes causally, whatever its mask.

    Args:
        tokens: (B, L) token ids.
        image_ids: (B, L) image ids, as in PackedBatch.
        groups: The images of these rows.
        codec: Makes the codes of the images.
        first_code: Id of the token of code 0, which is the size of the vocabulary of the text.
        generator: Generator of a codec that draws random numbers.
    """
    flat = tokens.flatten().clone()  # (B · L)
    for group in groups:
        codes = codec.latents(group.images, generator).flatten().long().to(tokens.device)  # (N · P), image after image
        flat[group.at.flatten().to(tokens.device)] = codes + first_code
    return flat.view_as(tokens), torch.full_like(image_ids, TEXT)


def positions_before(groups: Sequence[ImageGroup]) -> Tensor:
    """The flattened positions (K,) that predict the codes of the learned images: each is one before its code."""
    return torch.cat([group.at.index_select(0, group.learned).flatten() for group in groups]) - 1
