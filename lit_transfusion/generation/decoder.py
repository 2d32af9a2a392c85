"""A batch of documents during generation, with the cached keys and values of all their positions so far."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_transfusion.data.image_tokens import images_as_text
from lit_transfusion.data.packing import FlatDocument, image_groups
from lit_transfusion.data.types import TEXT, ImageGroup, ImageSegment
from lit_transfusion.generation.cuda_graph import Graphed
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.latents import Codec
from lit_transfusion.model import NoisyImages, Transfusion
from lit_transfusion.model.kv_cache import KVCache

BUCKET = 256  # captured passes use a multiple of this many cache slots, so that growing rows need few graphs


class Decoder:
    """A batch with one row for each document; each row has its own length.

    Args:
        pipeline: The net and its parts.
        batch_size: Number of rows R.
        capacity: The most positions that a row can hold.
    """

    def __init__(self, pipeline: Pipeline, batch_size: int, capacity: int) -> None:
        self.pipeline = pipeline
        self.device = pipeline.net.head.weight.device
        self.cache = pipeline.net.new_cache(batch_size, whole_buckets(capacity) if pipeline.cuda_graphs else capacity)
        self.capacity = capacity
        self.graphed: dict[int, Graphed] = {}  # number of cache slots → the pass that uses them
        # (R, V) for the next token of each row, from the last read
        self.logits = torch.zeros(batch_size, pipeline.net.head.out_features, device=self.device)
        self.lengths = [0] * batch_size  # positions of each row; on the host, since they determine tensor sizes

    def read(self, pieces: Sequence[FlatDocument]) -> None:
        """Read one piece of a document into each of the first rows. Images are clean, at t = 0."""
        added = [len(piece.tokens) for piece in pieces]
        length = max(added)
        token_rows, id_rows = [], []
        images: list[ImageSegment] = []
        for piece in pieces:
            padding = length - len(piece.tokens)
            token_rows.append([*piece.tokens, *[self.pipeline.tokenizer.pad] * padding])
            id_rows.append([i if i < 0 else i + len(images) for i in piece.image_ids] + [TEXT] * padding)
            images += piece.images
        codec, groups = self.pipeline.codec, image_groups(images, np.array(id_rows))
        tokens, image_ids = torch.tensor(token_rows, device=self.device), torch.tensor(id_rows, device=self.device)
        if self.pipeline.images_are_tokens:
            tokens, image_ids = images_as_text(tokens, image_ids, groups, codec, self.pipeline.first_code)
            groups = ()
        last = torch.tensor([row * length + n - 1 for row, n in enumerate(added)], device=self.device)
        self.logits = self._forward(
            tokens,
            image_ids,
            [clean(group, codec, self.device) for group in groups],
            logit_positions=last,
        )[0]
        self._grow(added)

    def read_tokens(self, token_ids: Sequence[int | None]) -> None:
        """Read one token into each of the first rows. A row with None does not grow, and keeps its logits."""
        pad = self.pipeline.tokenizer.pad
        tokens = torch.tensor([[pad if token is None else token] for token in token_ids], device=self.device)  # (R, 1)
        logits = self._forward(
            tokens,
            torch.full_like(tokens, TEXT),
            [],
            logit_positions=torch.arange(len(tokens), device=self.device),
            repeated=True,
        )[0]
        grows = torch.tensor([[token is not None] for token in token_ids], device=self.device)  # (R, 1)
        self.logits = torch.where(grows, logits, self.logits)
        self._grow([int(token is not None) for token in token_ids])

    def predict_images(self, noisy_images: Tensor, timestep: float) -> Tensor:
        """Predict for noisy images (N, C, H, W), one after each of the first N rows.

        The images are not added to the rows, since the next denoising step replaces them.
        """
        rows, columns = self.pipeline.net.patcher.grid(noisy_images)
        shape = len(noisy_images), rows * columns
        image_ids = torch.arange(shape[0], device=self.device)[:, None].expand(shape)
        at = torch.arange(image_ids.numel(), device=self.device).view(shape)
        timesteps = torch.full(shape[:1], timestep, device=self.device)
        return self._forward(
            torch.zeros_like(image_ids),
            image_ids,
            [NoisyImages(noisy_images, timesteps, at)],
            logit_positions=torch.zeros(0, dtype=torch.int64, device=self.device),
            repeated=True,
        )[1]

    def branch(self, rows: Sequence[int], null: "Decoder | None", room: int) -> "Decoder":
        """Copy `rows`, then the same number of rows of `null`, into a new decoder with room for `room` more positions.

        It is used to draw images in some of the rows, and to drop rows that have ended.
        """
        parts = [(self, rows)] if null is None else [(self, rows), (null, range(len(rows)))]
        lengths = [part.lengths[row] for part, taken in parts for row in taken]
        branch = Decoder(self.pipeline, len(lengths), max(lengths) + room)
        for i, (part, taken) in enumerate(parts):
            branch.cache.take_over(list(range(i * len(rows), (i + 1) * len(rows))), part.cache, list(taken))
        branch.lengths, branch.logits = lengths, torch.cat([part.logits[list(taken)] for part, taken in parts])
        return branch

    def merge(self, rows: Sequence[int], branch: "Decoder") -> None:
        """Copy the first rows of a branch back into `rows`."""
        self.cache.take_over(rows, branch.cache, list(range(len(rows))))
        for i, row in enumerate(rows):
            self.lengths[row] = branch.lengths[i]
            self.logits[row] = branch.logits[i]

    def _forward(
        self,
        tokens: Tensor,
        image_ids: Tensor,
        images: Sequence[NoisyImages],
        logit_positions: Tensor,
        repeated: bool = False,
    ) -> tuple[Tensor, ...]:
        """Run the net on (B, L) new positions that follow each of the first B rows; see `cached_forward`.

        `repeated` passes come many times with the same shapes, and may be captured.
        """
        B, L = tokens.shape
        starts = self.lengths[:B]
        end = max(starts) + L
        if end > self.capacity:
            raise ValueError(f"the cache has {self.capacity} positions, but {end} are needed; use a larger capacity")
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(L, device=self.device)
        dtype = self.cache.buffers.dtype
        images = [group._replace(values=group.values.to(dtype)) for group in images]
        inputs = tokens, positions, image_ids, logit_positions, *(part for group in images for part in group)
        if not (repeated and self.pipeline.cuda_graphs):
            return cached_forward(self.pipeline.net, self.cache, end, *inputs)
        slots = whole_buckets(end)  # the last ones may be empty; no position attends to them
        if slots not in self.graphed:
            self.graphed[slots] = Graphed(functools.partial(cached_forward, self.pipeline.net, self.cache, slots))
        return self.graphed[slots](*inputs)

    def _grow(self, added: Sequence[int]) -> None:
        for row, count in enumerate(added):
            self.lengths[row] += count


def cached_forward(
    net: Transfusion,
    cache: KVCache,
    slots: int,
    tokens: Tensor,
    positions: Tensor,
    image_ids: Tensor,
    logit_positions: Tensor,
    *images: Tensor,
) -> tuple[Tensor, ...]:
    """Run a forward pass with the first rows and slots of the cache. Returns logits, then the prediction of each group.

    Results are float32, in which samplers compute. `images` are the tensors of the groups one after another, since a
    CUDA graph has tensors as inputs and outputs. This is not a method, because a reference from the decoder to itself
    would keep its cache in memory for longer.
    """
    groups = list(map(NoisyImages, images[::3], images[1::3], images[2::3]))
    documents = torch.zeros_like(tokens)
    cached = cache.first(len(tokens), slots)
    output = net(tokens, positions, documents, image_ids, groups, logit_positions, cached)
    return tuple(part.float() for part in (output.logits, *output.image_predictions))


def clean(group: ImageGroup, codec: Codec, device: torch.device) -> NoisyImages:
    """Images without noise, at t = 0."""
    timesteps = torch.zeros(len(group.at), dtype=torch.int64, device=device)
    return NoisyImages(codec.latents(group.images).to(device), timesteps, group.at.to(device))


def whole_buckets(slots: int) -> int:
    """Round up to a multiple of BUCKET."""
    return -(-slots // BUCKET) * BUCKET
