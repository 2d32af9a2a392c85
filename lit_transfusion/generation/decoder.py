"""A batch of documents being read and written, with the keys and values of all that stands already."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.data.document import TEXT, ImageSegment
from lit_transfusion.data.packing import FlatDocument
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.model import TransfusionOutput


class Decoder:
    """One row for each document. Rows grow together in the cache; a row that has nothing to add leaves holes.

    Args:
        pipeline: The net and its parts.
        batch_size: Rows R.
        capacity: Positions that may be read and written in all, for each row.
    """

    def __init__(self, pipeline: Pipeline, batch_size: int, capacity: int) -> None:
        self.pipeline = pipeline
        self.device = pipeline.net.head.weight.device
        self.cache = pipeline.net.new_cache(batch_size, capacity)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=self.device)  # positions of each row

    def read(self, documents: Sequence[FlatDocument]) -> Tensor:
        """Read one piece of a document into each row (images as they are, at t = 0) → (R, V) logits of what is next."""
        longest = max(len(document.tokens) for document in documents)
        tokens = torch.zeros(len(documents), longest, dtype=torch.int64, device=self.device)
        image_ids = torch.full_like(tokens, TEXT)
        holes = torch.ones_like(tokens, dtype=torch.bool)
        images: list[ImageSegment] = []
        for row, document in enumerate(documents):
            here = slice(len(document.tokens))
            tokens[row, here] = torch.tensor(document.tokens, device=self.device)
            ids = torch.tensor(document.image_ids, device=self.device)
            image_ids[row, here] = torch.where(ids >= 0, ids + len(images), TEXT)
            holes[row, here] = False
            images += document.images
        latents = torch.zeros(0, *self.pipeline.latent_shape, device=self.device)
        if images:
            latents = torch.stack([image.latents for image in images]).to(self.device)
        logits = self._forward(tokens, image_ids, holes, latents, timestep=0).logits
        self._keep(holes)
        return logits

    def read_tokens(self, token_ids: Tensor, active: Tensor) -> Tensor:
        """Add one token (R,) to each row that is `active` (R,) → (R, V) logits of what is next."""
        no_image = torch.zeros(0, *self.pipeline.latent_shape, device=self.device)
        holes = ~active[:, None]
        logits = self._forward(token_ids[:, None], torch.full_like(holes, TEXT, dtype=torch.int64), holes, no_image, 0)
        self._keep(holes)
        return logits.logits

    def predict_image(self, noisy_images: Tensor, timestep: int) -> Tensor:
        """What the net makes of (R, C, H, W) at the end of each row. Nothing is kept: the next step comes instead."""
        return self._image(noisy_images, torch.ones_like(self.lengths, dtype=torch.bool), timestep).image_prediction

    def read_image(self, images: Tensor, active: Tensor) -> None:
        """Read the finished image (R, C, H, W) of each active row, at t = 0."""
        self._image(images, active, timestep=0)
        self._keep(~active[:, None].expand(-1, self.pipeline.patches_per_image))

    def rewind(self, lengths: Tensor) -> None:
        """Forget what each row holds from position `lengths` (R,) on."""
        self.cache.forget(lengths)
        self.lengths = lengths

    def _image(self, images: Tensor, active: Tensor, timestep: int) -> TransfusionOutput:
        shape = len(images), self.pipeline.patches_per_image
        image_ids = torch.arange(len(images), device=self.device)[:, None].expand(shape)
        tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        return self._forward(tokens, image_ids, ~active[:, None].expand(shape), images, timestep)

    def _forward(
        self, tokens: Tensor, image_ids: Tensor, holes: Tensor, images: Tensor, timestep: int
    ) -> TransfusionOutput:
        length = tokens.shape[1]
        index = torch.arange(length, device=self.device)
        last = (~holes).sum(1).clamp(min=1) - 1  # of each row
        return self.pipeline.net(
            tokens,
            self.lengths[:, None] + index,
            torch.where(holes, -1, 0),
            image_ids,
            images,
            torch.full((len(images),), timestep, device=self.device),
            logit_positions=torch.arange(len(tokens), device=self.device) * length + last,
            cache=self.cache,
        )

    def _keep(self, holes: Tensor) -> None:
        self.cache.keep()
        self.lengths += (~holes).sum(1)
