"""The loader of packed batches. Workers make documents and the main process packs them. It resumes at any step."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from lit_transfusion.data.document_set import DocumentSet
from lit_transfusion.data.packing import FirstFit, FlatDocument, collate
from lit_transfusion.data.permutation import hash_of, shuffled
from lit_transfusion.data.skip_report import SkipReport
from lit_transfusion.data.sources.base import Stream
from lit_transfusion.data.stream_state import Place, check_state, reshard
from lit_transfusion.data.types import PackedBatch, Skipped
from lit_transfusion.data.worker_feed import Feed, Key
from lit_transfusion.errors import InputError

log = logging.getLogger(__name__)

Piece = tuple[int, int, int]  # (epoch, index, which of the documents of that example)
Rows = list[list[tuple[Piece, FlatDocument]]]


class PackedLoader:
    """Iterates over packed batches: without end and in a new order each epoch, or once in order.

    Workers only make documents, which arrive in the order of the requests; the main process packs them. So the stream
    does not depend on the number of workers, and its state is a few numbers: the epoch, the number of used documents,
    the documents that wait in open rows, and the number of batches.

    Each source of a mix has its own epochs. The next document comes from the source that has given the fewest
    positions for its weight. The main process makes this choice, because the length of a document is known only after
    it is made. Weights may change after a given number of batches.

    Args:
        documents: The documents to pack, and the length L of a row.
        batch_size: Rows B of a batch.
        latent_shape: (C, H, W) of the group of images of a batch without images.
        open_rows: Rows that first-fit packing keeps open at the same time.
        num_workers: Processes that make documents; 0 makes them in this process.
        endless: Repeat without end in shuffled order (training), or pass once in order (validation).
        rank: Index of this process; it reads one of `world_size` equal shares of the documents. If the number of
            examples is not divisible, the first ranks read one more in each epoch: none is lost or read twice.
        world_size: Number of processes.
        name: Name of the validation losses of this loader, if there are several loaders.
        max_skipped: Largest share of unusable examples of a source in one epoch of training, in [0, 1]. Each rank
            checks its own share of the examples.
        batches_per_step: Batches of one optimiser step. They are made together, so that each one contains the number of
            targets of the whole step. The saved position in the data advances by whole steps.

    Raises:
        InputError: More than `max_skipped` of an epoch is certain to be skipped, or a whole epoch was skipped.
    """

    def __init__(
        self,
        documents: DocumentSet,
        batch_size: int,
        latent_shape: tuple[int, int, int],
        open_rows: int = 16,
        num_workers: int = 0,
        endless: bool = True,
        rank: int = 0,
        world_size: int = 1,
        name: str = "",
        max_skipped: float = 1.0,
        batches_per_step: int = 1,
    ) -> None:
        self.documents = documents
        self.batch_size = batch_size
        self.length = documents.length
        self.latent_shape = latent_shape
        self.open_rows = open_rows
        self.num_workers = num_workers
        self.endless = endless
        self.rank = rank
        self.world_size = world_size
        self.name = name
        self.batches_per_step = batches_per_step
        # Weights apply to endless loading only; validation reads every example once.
        self.streams = documents.source.streams() if endless else [Stream("", 1.0, range(len(documents.source)))]
        for stream in self.streams:
            if 0 < len(stream.indices) < world_size:
                raise InputError(
                    f"{stream.examples} cannot be divided among {world_size} processes; use at most "
                    f"{len(stream.indices)} processes, or add examples"
                )
        # Validation only counts: one of a few held-out examples is a large share.
        self.report = SkipReport(max_skipped if endless else None, rank, world_size)
        self.positions = [0] * len(self.streams)  # that each stream has given since its weight last changed
        self.seconds = 0.0  # spent here while training waited
        places = [asdict(Place(stream.name, stream.weight, len(stream.indices))) for stream in self.streams]
        # The state after the last optimiser step whose batches were all yielded, and the state before that step.
        self._state: dict[str, Any] = {"streams": places, "open": [], "batches": 0}
        self._state_before = self._state
        self.step_pieces: list[list[list[Piece]]] = []  # the pieces of each batch yielded in this step, row by row

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
        """Yield batches, made one optimiser step at a time (in validation, one batch at a time)."""
        step: list[Rows] = []
        for rows, state in self._full_rows():
            step.append(rows)
            if len(step) < self.batches_per_step:
                continue
            batches, self._state_before, self.step_pieces = self.collate_step(step), self._state, []
            for number, (rows, batch) in enumerate(zip(step, batches, strict=True), 1):
                self.step_pieces.append([[piece for piece, _ in row] for row in rows])
                if number == len(step) and self.endless:  # each validation starts at the first example
                    self._state = state
                yield batch
            step = []

    def _full_rows(self) -> Iterator[tuple[Rows, dict[str, Any]]]:
        """Pack documents. Yields the rows of each batch, with the state after it."""
        for stream in self.streams:
            if not stream.indices:
                self.report.end_epoch(stream, Place(stream.name, stream.weight, 0))
        places = [Place(**place) for place in copy.deepcopy(self._state["streams"])]
        batches = self._state["batches"]
        self._update_weights(places, batches)
        packer: FirstFit[tuple[Piece, FlatDocument]] = FirstFit(self.length, self.open_rows)
        packer.rows = list(map(self._remake_row, self._state["open"]))
        closed: Rows = []  # full rows that wait for their batch: fewer than `batch_size`
        for piece, document in self._documents(places):
            row = packer.add((piece, document), len(document.tokens))
            if row is not None:
                closed.append(row)
            if len(closed) == self.batch_size:
                rows, closed, batches = closed, [], batches + 1
                yield rows, self._state_after(places, packer, batches)
                self._update_weights(places, batches)
        closed += packer.flush()
        for start in range(0, len(closed), self.batch_size):
            yield closed[start : start + self.batch_size], {}

    def _documents(self, places: list[Place]) -> Iterator[tuple[Piece, FlatDocument]]:
        """Yield the next document of the stream with the fewest positions for its weight, and update `places`."""
        feed = Feed(self.documents, list(map(self._keys, self.streams, places)), self.num_workers)
        while True:
            number = min((n for n, place in enumerate(places) if place.weight), key=lambda n: places[n].served)
            stream, place = self.streams[number], places[number]
            made = feed.take(number)
            if made is None:
                self.report.end_epoch(stream, place)
                return
            if place.was_used(made):
                continue
            if place.starts_later_epoch(made):
                self.report.end_epoch(stream, place)
                place.start_epoch(made.key[0])
            place.advance(made)
            if isinstance(made.document, Skipped):
                self.report.skip(made.document, stream, place)
                continue
            length = len(made.document.tokens)
            place.usable = True
            place.served += length / place.weight
            self.positions[number] += length
            if made.document.cut:
                self.report.count_cut(made.key, place)
            yield (*made.key, made.piece), made.document

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks, because Lightning saves only what rank 0 returns."""
        if not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [self._state], "data": self._fingerprints}
        states = [None] * dist.get_world_size()
        dist.all_gather_object(states, self._state)
        return {"ranks": states, "data": self._fingerprints}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved state.

        With the same number of processes, the stream is the same. With another number, each document of the epoch that
        was not used yet is used once, by one of the processes.

        Raises:
            InputError: The state belongs to another version, other sources, or another number of examples.
        """
        ranks = state["ranks"]
        check_state(ranks[0], self._state, self.streams)
        before = state.get("data", {})  # earlier versions saved none
        for name, now in self._fingerprints.items():
            if self.rank == 0 and before.get(name, now) != now:
                log.warning(
                    "the examples%s have changed since the checkpoint was written (their number is the same): until "
                    "the epoch ends, some may be used twice and others not at all",
                    f" of {name}" * bool(name),
                )
        if len(ranks) != self.world_size:
            log.info("the data position of %d processes is divided among %d", len(ranks), self.world_size)
            ranks = reshard(ranks, self.streams, self._order, self.world_size)
        self._state = self._state_before = ranks[self.rank]

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Source name → fingerprint of its examples, for sources that have one."""
        parts = self.documents.source.parts.items()
        return {name: found for name, part in parts if (found := part.fingerprint()) is not None}

    def shares(self) -> dict[str, float]:
        """The share of each source of a mix in all positions, since this process began or the weights last changed."""
        total = max(sum(self.positions), 1)
        return {s.name: count / total for s, count in zip(self.streams, self.positions, strict=True) if s.name}

    def give_back(self) -> None:
        """Return the batches of the last optimiser step, which was not made: a resumed run starts with that step."""
        if len(self.step_pieces) == self.batches_per_step:  # otherwise the state is still the one before the step
            self._state = self._state_before

    def _keys(self, stream: Stream, place: Place) -> Iterator[Key]:
        """Yield the examples of a stream from the given place on, in the order of use."""
        indices, epoch = stream.indices, place.epoch
        start = place.base + self.rank + place.used * self.world_size
        yield from [(epoch, index) for epoch, index, _ in place.todo]
        while indices:
            order = self._order(stream, epoch) if self.endless else range(len(indices))
            for number in range(start, len(indices), self.world_size):
                yield epoch, indices[order[number]]
            if not self.endless:
                return
            epoch, start = epoch + 1, self.rank

    def _order(self, stream: Stream, epoch: int) -> Sequence[int]:
        return shuffled(len(stream.indices), hash_of(self.documents.seed, epoch, stream.indices.stop))

    def _remake_row(self, row: Sequence[Piece]) -> list[tuple[int, tuple[Piece, FlatDocument]]]:
        """Make the documents of an open row again, each with its length, without those that cannot be used any more."""
        waiting = []
        for epoch, index, number in row:
            documents = self.documents[epoch, index]
            if isinstance(documents, Skipped):
                self.report.count(documents)
                continue
            waiting += [((epoch, index, number), document) for document in documents[number : number + 1]]
            if number >= len(documents) or sum(len(document.tokens) for _, document in waiting) > self.length:
                raise InputError(
                    "the documents in open rows have changed since the checkpoint was written; use the data and the "
                    "data.sequence_length of the checkpoint, or start from its weights with model.init_from"
                )
        return [(len(document.tokens), (piece, document)) for piece, document in waiting]

    def _update_weights(self, places: list[Place], batches: int) -> None:
        """Set the weight of each stream after this number of batches.

        If a weight changes, all counts restart, so that a stream which was unused so far does not catch up.
        """
        weights = [stream.weight_after(batches) for stream in self.streams]
        if weights == [place.weight for place in places]:
            return
        for place, weight in zip(places, weights, strict=True):
            place.weight, place.served = weight, 0.0
        self.positions = [0] * len(places)
        if self.rank == 0:
            shares = ", ".join(f"{place.name} {place.weight:.3g}" for place in places)
            log.info("weights from batch %d on: %s", batches, shares)

    def _state_after(
        self, places: list[Place], packer: FirstFit[tuple[Piece, FlatDocument]], batches: int
    ) -> dict[str, Any]:
        return {
            "streams": [asdict(place) for place in places],
            "open": [[piece for _, (piece, _) in row] for row in packer.rows],
            "batches": batches,
        }

    def collate_step(self, step: list[Rows]) -> list[PackedBatch]:
        """Make the batches of one optimiser step. Each contains the number of targets of the whole step."""
        pad = self.documents.tokenizer.pad
        documents = [[[document for _, document in row] for row in rows] for rows in step]
        batches = [collate(rows, self.length, pad, self.latent_shape) for rows in documents]
        counts = torch.stack([batch.step_counts for batch in batches]).sum(0)
        return [batch._replace(step_counts=counts) for batch in batches]
