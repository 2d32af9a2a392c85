"""A batch of documents being read and written, with the keys and values of all that stands already."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.data.packing import FlatDocument
from lit_transfusion.data.types import TEXT, ImageSegment
from lit_transfusion.generation.cuda_graph import Recorded
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.model import Transfusion, TransfusionOutput
from lit_transfusion.model.kv_cache import KVCache

BUCKET = 256  # a recorded pass looks at a multiple of so many slots, so that few are recorded while rows grow


class Decoder:
    """One row for each document, of a length of its own.

    Args:
        pipeline: The net and its parts.
        batch_size: Rows R.
        capacity: Positions that a row may come to have.
    """

    def __init__(self, pipeline: Pipeline, batch_size: int, capacity: int) -> None:
        self.pipeline = pipeline
        self.device = pipeline.net.head.weight.device
        self.cache = pipeline.net.new_cache(batch_size, whole_buckets(capacity) if pipeline.recording else capacity)
        self.capacity = capacity
        self.recorded: dict[int, Recorded] = {}  # passes that come again and again, by the slots that they look at
        self.logits = torch.zeros(0)  # (R, V) of what comes next in each row, as far as it was read last
        self.lengths = [0] * batch_size  # positions of each row; on the host, since they decide the size of tensors

    def read(self, pieces: Sequence[FlatDocument]) -> None:
        """Read a piece of a document into each of the first rows, its images clean, at t = 0."""
        added = [len(piece.tokens) for piece in pieces]
        length = max(added)
        tokens, image_ids = [], []
        images: list[ImageSegment] = []
        for piece in pieces:
            padding = length - len(piece.tokens)
            tokens.append([*piece.tokens, *[self.pipeline.tokenizer.pad] * padding])
            image_ids.append([i if i < 0 else i + len(images) for i in piece.image_ids] + [TEXT] * padding)
            images += piece.images
        last = torch.tensor([row * length + n - 1 for row, n in enumerate(added)], device=self.device)
        self.logits = self._forward(
            torch.tensor(tokens, device=self.device),
            torch.tensor(image_ids, device=self.device),
            self._stack(images),
            timestep=0,
            logit_positions=last,
        ).logits
        self._grow(added)

    def read_tokens(self, token_ids: Sequence[int | None]) -> None:
        """Read one token into each row, None into those that wait; their logits mean nothing from then on."""
        pad = self.pipeline.tokenizer.pad
        tokens = torch.tensor([[pad if token is None else token] for token in token_ids], device=self.device)  # (R, 1)
        self.logits = self._forward(
            tokens,
            torch.full_like(tokens, TEXT),
            self._stack([]),
            timestep=0,
            logit_positions=torch.arange(len(tokens), device=self.device),
            repeated=True,
        ).logits
        self._grow([int(token is not None) for token in token_ids])

    def predict_images(self, noisy_images: Tensor, timestep: int) -> Tensor:
        """What the net makes of (N, C, H, W) images after the first N rows. They are not kept: the next step comes
        instead."""
        shape = len(noisy_images), self.pipeline.patches_per_image
        image_ids = torch.arange(shape[0], device=self.device)[:, None].expand(shape)
        return self._forward(
            torch.zeros_like(image_ids),
            image_ids,
            noisy_images,
            timestep,
            logit_positions=torch.zeros(0, dtype=torch.int64, device=self.device),
            repeated=True,
        ).image_prediction

    def branch(self, rows: Sequence[int], null: "Decoder | None", room: int) -> "Decoder":
        """A decoder whose rows are copies of `rows`, and then all rows of `null`, one for each, with `room` to go on.

        For images, which only some rows may be about to draw, and to leave rows behind that have ended.
        """
        parts = [(self, rows)] if null is None else [(self, rows), (null, range(len(rows)))]
        lengths = [part.lengths[row] for part, taken in parts for row in taken]
        branch = Decoder(self.pipeline, len(lengths), max(lengths) + room)
        for i, (part, taken) in enumerate(parts):
            branch.cache.take_over(list(range(i * len(rows), (i + 1) * len(rows))), part.cache, list(taken))
        branch.lengths, branch.logits = lengths, self.logits[rows]
        return branch

    def merge(self, rows: Sequence[int], branch: "Decoder") -> None:
        """Go on in `rows` from where the first rows of a branch have come to."""
        self.cache.take_over(rows, branch.cache, list(range(len(rows))))
        for i, row in enumerate(rows):
            self.lengths[row] = branch.lengths[i]
            self.logits[row] = branch.logits[i]

    def _forward(
        self,
        tokens: Tensor,
        image_ids: Tensor,
        images: Tensor,
        timestep: int,
        logit_positions: Tensor,
        repeated: bool = False,
    ) -> TransfusionOutput:
        """What the net says to (B, L) new positions, one after another, of the first B rows. A pass that is `repeated`
        comes again and again in these shapes, and may be recorded."""
        B, L = tokens.shape
        starts = self.lengths[:B]
        end = max(starts) + L
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} are needed")
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(L, device=self.device)
        timesteps = torch.full((len(images),), timestep, device=self.device)
        images = images.to(self.cache.buffers.dtype)
        inputs = tokens, positions, torch.zeros_like(tokens), image_ids, images, timesteps, logit_positions
        if not (repeated and self.pipeline.recording):
            return in_float32(self.pipeline.net(*inputs, self.cache.first(B, end)))
        slots = whole_buckets(end)  # in the last of them nothing stands yet, and nobody looks there
        if slots not in self.recorded:
            self.recorded[slots] = Recorded(functools.partial(go_on, self.pipeline.net, self.cache, slots))
        return in_float32(self.recorded[slots](*inputs))

    def _grow(self, added: Sequence[int]) -> None:
        for row, count in enumerate(added):
            self.lengths[row] += count

    def _stack(self, images: Sequence[ImageSegment]) -> Tensor:
        if not images:
            return torch.zeros(0, *self.pipeline.latent_shape, device=self.device)
        return torch.stack([image.latents for image in images]).to(self.device)


def go_on(net: Transfusion, cache: KVCache, slots: int, tokens: Tensor, *inputs: Tensor) -> TransfusionOutput:
    """A forward pass of the first rows. (No method: a decoder that held itself would keep its cache for longer.)"""
    return net(tokens, *inputs, cache.first(len(tokens), slots))


def in_float32(output: Sequence[Tensor]) -> TransfusionOutput:
    """In which samplers reckon, whatever the net does."""
    return TransfusionOutput(*(tensor.float() for tensor in output))


def whole_buckets(slots: int) -> int:
    """Rounded up."""
    return -(-slots // BUCKET) * BUCKET
