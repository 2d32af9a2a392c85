"""The stream of batches: documents made by workers, packed in the main process, resumable at any batch."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from lit_transfusion.data.document import PackedBatch, Skipped
from lit_transfusion.data.packing import FirstFit, FlatDocument, collate, flatten, room_for_text
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError

log = logging.getLogger(__name__)

Key = tuple[int, int]  # (epoch, index): all that a document depends on, beside the seed


class DocumentSet(Dataset):
    """(epoch, index) → the document of that example in that epoch, always the same."""

    def __init__(
        self, source: Source, recipe: Recipe, tokenizer: Tokenizer, patches_per_image: int, length: int, seed: int
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.patches_per_image = patches_per_image
        self.max_text_tokens = room_for_text(length, patches_per_image, source.images_per_example)
        self.seed = seed

    def __getitem__(self, key: Key) -> FlatDocument | Skipped:
        example = self.source[key[1]]
        if isinstance(example, Skipped):
            return example
        generator = torch.Generator().manual_seed(mix(self.seed, *key))
        document = self.recipe.document(example, self.tokenizer, self.max_text_tokens, generator)
        return flatten(document, self.tokenizer, self.patches_per_image)


class PackedLoader:
    """Iterates over packed batches: endlessly, in a new order each epoch, or once in order.

    Workers only make documents, which come back in the order they were asked for; packing is done here. So the stream
    does not depend on the number of workers, and where it stands is a few numbers: the epoch, how many of its
    documents are used up, and which ones wait in rows that are not full.

    Args:
        documents: What to pack.
        batch_size: Rows B of a batch.
        length: Positions L of a row.
        image_shape: (C, H, W) of an image.
        open_rows: Rows that first-fit packing keeps open.
        num_workers: Processes that make documents; 0 makes them here.
        endless: Go on for ever in shuffled order (training), or once through in order (validation).
        rank: Which of `world_size` equal shares of the documents is this process's.
        world_size: Number of processes.
    """

    def __init__(
        self,
        documents: DocumentSet,
        batch_size: int,
        length: int,
        image_shape: tuple[int, int, int],
        open_rows: int = 16,
        num_workers: int = 0,
        endless: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.documents = documents
        self.batch_size = batch_size
        self.length = length
        self.image_shape = image_shape
        self.open_rows = open_rows
        self.num_workers = num_workers
        self.endless = endless
        self.rank = rank
        self.world_size = world_size
        if 0 < len(documents.source) < world_size:
            raise InputError(f"{len(documents.source)} examples cannot be shared out to {world_size} processes")
        self.skipped: Counter[str] = Counter()
        self.seconds = 0.0  # spent in here, while training waited
        self._state: dict[str, Any] = {"epoch": 0, "used": 0, "open": []}  # after the batch handed out last
        self._state_before = self._state  # before it

    def __iter__(self) -> Iterator[PackedBatch]:
        batches = self._batches()
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _batches(self) -> Iterator[PackedBatch]:
        epoch, used = self._state["epoch"], self._state["used"]
        packer = FirstFit(self.length, self.open_rows)
        packer.rows = [[self._sized(key, self._remake(key)) for key in row] for row in self._state["open"]]
        closed: list[list[tuple[Key, FlatDocument]]] = []  # full rows, fewer than a batch; none when one is handed out
        usable = used > 0  # whether this epoch has given anything
        for key, document in zip(self._keys(epoch, used), self._make(epoch, used), strict=True):
            if key[0] != epoch:
                self._end_epoch(epoch, usable)
                epoch, used, usable = key[0], 0, False
            used += 1
            if isinstance(document, Skipped):
                self._skip(document)
                continue
            usable = True
            row = packer.add((key, document), len(document.tokens))
            if row is not None:
                closed.append(row)
            if len(closed) == self.batch_size:
                batch, closed = closed, []
                if self.endless:  # validation starts at the first example each time
                    self._remember(epoch, used, packer)
                yield self._collate(batch)
        self._end_epoch(epoch, usable)
        closed += packer.flush()
        for start in range(0, len(closed), self.batch_size):
            yield self._collate(closed[start : start + self.batch_size])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of every rank stands: Lightning keeps only what rank 0 returns."""
        if not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [self._state]}
        states = [None] * dist.get_world_size()
        dist.all_gather_object(states, self._state)
        return {"ranks": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["ranks"]) != self.world_size:
            raise InputError(
                f"the checkpoint was written by {len(state['ranks'])} processes and this run has {self.world_size}: "
                "continue with the same number of devices, or start from its weights with model.init_from"
            )
        self._state = self._state_before = state["ranks"][self.rank]

    def give_back(self) -> None:
        """The batch handed out last was not used: a run that goes on from here begins with it."""
        self._state = self._state_before

    def _order(self, epoch: int) -> list[int]:
        size = len(self.documents.source)
        if not self.endless:
            return list(range(self.rank, size, self.world_size))
        generator = torch.Generator().manual_seed(mix(self.documents.seed, epoch, size))
        return torch.randperm(size, generator=generator)[self.rank :: self.world_size].tolist()

    def _keys(self, epoch: int, used: int) -> Iterator[Key]:
        """The documents from the given place on, in the order in which they are used."""
        while True:
            for index in self._order(epoch)[used:]:
                yield epoch, index
            if not self.endless or not len(self.documents.source):
                return
            epoch, used = epoch + 1, 0

    def _make(self, epoch: int, used: int) -> Iterator[FlatDocument | Skipped]:
        """Their contents, made by workers that live through all epochs."""
        return iter(
            DataLoader(
                self.documents,
                sampler=self._keys(epoch, used),
                batch_size=None,
                num_workers=self.num_workers,
                prefetch_factor=16 if self.num_workers else None,
                collate_fn=as_it_is,
            )
        )

    def _remake(self, key: Key) -> FlatDocument:
        return self.documents[tuple(key)]

    @staticmethod
    def _sized(key: Key, document: FlatDocument) -> tuple[int, tuple[Key, FlatDocument]]:
        return len(document.tokens), (key, document)

    def _remember(self, epoch: int, used: int, packer: FirstFit) -> None:
        self._state_before = self._state
        self._state = {
            "epoch": epoch,
            "used": used,
            "open": [[key for _, (key, _) in row] for row in packer.rows],
        }

    def _collate(self, rows: list[list[tuple[Key, FlatDocument]]]) -> PackedBatch:
        documents = [[document for _, document in row] for row in rows]
        return collate(documents, self.length, self.documents.tokenizer.pad, self.image_shape)

    def _skip(self, skipped: Skipped) -> None:
        if not self.skipped[skipped.reason]:
            log.warning("skipped %s: %s (more of this kind are only counted)", skipped.name, skipped.reason)
        self.skipped[skipped.reason] += 1

    def _reasons(self) -> str:
        return ", ".join(f"{reason}: {count}" for reason, count in self.skipped.items())

    def _end_epoch(self, epoch: int, usable: bool) -> None:
        size = len(self.documents.source)
        if not usable:
            raise InputError(f"not one of the {size} examples can be used ({self._reasons() or 'no examples'})")
        if self.skipped:
            log.warning("by the end of epoch %d, of %d examples skipped: %s", epoch, size, self._reasons())


def mix(*numbers: int) -> int:
    """One seed out of several numbers; neighbours give unrelated streams."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**64
        seed ^= seed >> 29
    return seed % 2**63


def as_it_is(document: FlatDocument | Skipped) -> FlatDocument | Skipped:
    """In place of DataLoader's own, which would look through every list for arrays to turn into tensors."""
    return document
