"""The stream of batches: documents made by workers, packed in the main process, resumable at any optimiser step."""

import copy
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from lit_transfusion.data.packing import FirstFit, FlatDocument, collate, flatten, room_for_text
from lit_transfusion.data.permutation import mix, shuffled
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.sources.base import Source, Stream
from lit_transfusion.data.stream_state import Place, shared_out
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import PackedBatch, Skipped, in_words
from lit_transfusion.data.worker_feed import Feed, Key
from lit_transfusion.errors import InputError
from lit_transfusion.wording import counted

log = logging.getLogger(__name__)

Piece = tuple[int, int, int]  # (epoch, index, which of the documents of that example)
Rows = list[list[tuple[Piece, FlatDocument]]]


class DocumentSet(Dataset):
    """(epoch, index) → the documents of that example in that epoch, always the same: one, or several of a long text."""

    def __init__(
        self, source: Source, recipe: Recipe, tokenizer: Tokenizer, patches_per_image: int, length: int, seed: int
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.patches_per_image = patches_per_image
        self.length = length
        self.seed = seed

    def __getitem__(self, key: Key) -> list[FlatDocument] | Skipped:
        example = self.source[key[1]]
        if isinstance(example, Skipped):
            return example
        generator = torch.Generator().manual_seed(mix(self.seed, *key))
        room = room_for_text(self.length, self.patches_per_image, example.num_images)
        documents = self.recipe.documents(example, self.tokenizer, room, generator)
        return [flatten(document, self.tokenizer, self.patches_per_image) for document in documents]


class PackedLoader:
    """Iterates over packed batches: endlessly, in a new order each epoch, or once in order.

    Workers only make documents, which come back in the order they were asked for; packing is done here. So the stream
    does not depend on the number of workers, and where it stands is a few numbers: the epoch, how many of its
    documents are used up, which ones wait in rows that are not full, and how many batches there were.

    Where the source is a mix of several, each goes through epochs of its own. The next document is taken from the one
    that has given the fewest positions for its weight: how long a document is, is known only when it has been made, so
    the choice is made here, by what was taken so far. Weights may change after so many batches.

    Args:
        documents: What to pack.
        batch_size: Rows B of a batch.
        length: Positions L of a row.
        image_shape: (C, H, W) of an image.
        open_rows: Rows that first-fit packing keeps open.
        num_workers: Processes that make documents; 0 makes them here.
        endless: Go on for ever in shuffled order (training), or once through in order (validation).
        rank: Which of `world_size` equal shares of the documents is this process's. Where they cannot be equal, the
            first ranks have one example more of each epoch: none is left out, and none given out twice.
        world_size: Number of processes.
        name: What validation calls its losses, where there is more than one loader.
        max_skipped: Largest share of an epoch's examples of a source that may be of no use, in [0, 1], each rank for
            those that are its own. Validation only counts: of a few held-out examples, one is a large share.
        batches_per_step: Batches that one optimiser step learns from. They are made together, so that each knows how
            many targets all of them have, and the place in the data moves from one step to the next.

    Raises:
        InputError: As soon as it is certain that more of an epoch is skipped, or when all of it was.
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
        name: str = "",
        max_skipped: float = 1.0,
        batches_per_step: int = 1,
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
        self.name = name
        self.max_skipped = max_skipped
        self.batches_per_step = batches_per_step
        # Without an end to it, nothing is mixed by weight: all is gone through once.
        self.streams = documents.source.streams() if endless else [Stream("", 1.0, range(len(documents.source)))]
        for stream in self.streams:
            if 0 < len(stream.indices) < world_size:
                raise InputError(f"{stream.examples} cannot be shared out to {world_size} processes")
        self.skipped: Counter[str] = Counter()
        self.cut = 0  # documents whose text was cut to what a row has room for
        self._told: dict[str, list[str]] = {}  # stream → what was said of its last epoch
        self.positions = [0] * len(self.streams)  # of the documents that each stream has given by its present weight
        self.seconds = 0.0  # spent in here, while training waited
        places = [asdict(Place(stream.name, stream.weight, len(stream.indices))) for stream in self.streams]
        # The place in the data after the last optimiser step whose batches were all handed out, and before that step.
        self._state: dict[str, Any] = {"streams": places, "open": [], "batches": 0}
        self._state_before = self._state
        self.step_pieces: list[list[list[Piece]]] = []  # what each batch handed out in this step is made of, row by row

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
        """The batches of one optimiser step after the other (validation: of one batch each)."""
        step: list[Rows] = []
        for rows, state in self._full_rows():
            step.append(rows)
            if len(step) < self.batches_per_step:
                continue
            batches, self._state_before, self.step_pieces = list(map(self._collate, step)), self._state, []
            counts = torch.stack([batch.step_counts for batch in batches]).sum(0)
            for number, (rows, batch) in enumerate(zip(step, batches, strict=True), 1):
                self.step_pieces.append([[piece for piece, _ in row] for row in rows])
                if number == len(step) and self.endless:  # validation starts at the first example each time
                    self._state = state
                yield batch._replace(step_counts=counts)
            step = []

    def _full_rows(self) -> Iterator[tuple[Rows, dict[str, Any]]]:
        """The rows of one batch after the other, and the place in the data after each."""
        for stream in self.streams:
            if not stream.indices:
                self._end_epoch(stream, Place(stream.name, stream.weight, 0))
        places = [Place(**place) for place in copy.deepcopy(self._state["streams"])]
        batches = self._state["batches"]
        self._weigh(places, batches)
        packer: FirstFit[tuple[Piece, FlatDocument]] = FirstFit(self.length, self.open_rows)
        packer.rows = list(map(self._reopened, self._state["open"]))
        feed = Feed(self.documents, list(map(self._keys, self.streams, places)), self.num_workers)
        closed: Rows = []  # full rows: fewer than a batch, none when one is handed out
        while True:
            number = min((n for n, place in enumerate(places) if place.weight), key=lambda n: places[n].served)
            stream, place = self.streams[number], places[number]
            made = feed.take(number)
            if made is None:
                break
            if place.has_given(made):
                continue
            if place.is_behind(made):
                self._end_epoch(stream, place)
                place.begin(made.key[0])
            place.advance(made)
            if isinstance(made.document, Skipped):
                self._skip(made.document, stream, place)
                continue
            length = len(made.document.tokens)
            place.usable = True
            place.served += length / place.weight
            self.positions[number] += length
            if made.document.cut:
                self._count_cut(made.key, place)
            row = packer.add(((*made.key, made.piece), made.document), length)
            if row is not None:
                closed.append(row)
            if len(closed) == self.batch_size:
                rows, closed, batches = closed, [], batches + 1
                yield rows, self._place(places, packer, batches)
                self._weigh(places, batches)
        self._end_epoch(stream, place)
        closed += packer.flush()
        for start in range(0, len(closed), self.batch_size):
            yield closed[start : start + self.batch_size], {}

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of every rank stands: Lightning keeps only what rank 0 returns."""
        if not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [self._state], "data": self._fingerprints}
        states = [None] * dist.get_world_size()
        dist.all_gather_object(states, self._state)
        return {"ranks": states, "data": self._fingerprints}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. With as many processes as before, the stream is the same; with more or fewer, each document
        of the epoch that has not come yet comes once, from one of them."""
        ranks, (own, *_) = state["ranks"], self._state["streams"]
        if ranks[0].keys() != self._state.keys() or ranks[0]["streams"][0].keys() != own.keys():
            raise InputError(
                "the checkpoint was written by another version of lit_transfusion, which kept its place in the data in "
                "another way: start from its weights with model.init_from"
            )
        theirs = [place["name"] for place in ranks[0]["streams"]]
        mine = [stream.name for stream in self.streams]
        if theirs != mine:
            raise InputError(
                f"the checkpoint was written with {told(theirs)} and this run has {told(mine)}: "
                "continue with the same, in the same order, or start from its weights with model.init_from"
            )
        for place, stream in zip(ranks[0]["streams"], self.streams, strict=True):
            if place["examples"] != len(stream.indices):
                raise InputError(
                    f"the checkpoint was written with {counted(place['examples'], 'example')} where this run has "
                    f"{stream.examples}, among which its place in the data has no meaning: continue with the data that "
                    "it had, or start from its weights with model.init_from"
                )
        before = state.get("data", {})  # earlier versions kept none
        for name, now in self._fingerprints.items():
            if self.rank == 0 and before.get(name, now) != now:
                log.warning(
                    "the examples%s are as many as when the checkpoint was written, and not the same (files or what is "
                    "said of them have changed): until the epoch ends, some may come twice and others not at all",
                    f" of {name}" * bool(name),
                )
        if len(ranks) != self.world_size:
            log.info("of %d processes, the documents are shared out to %d", len(ranks), self.world_size)
            ranks = shared_out(ranks, self.streams, self._order, self.world_size)
        self._state = self._state_before = ranks[self.rank]

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Source → what its examples are known by."""
        parts = self.documents.source.parts.items()
        return {name: found for name, part in parts if (found := part.fingerprint()) is not None}

    def shares(self) -> dict[str, float]:
        """Of a mix, the share of each source in the positions of the documents since this process began, or since the
        weights changed."""
        total = max(sum(self.positions), 1)
        return {s.name: count / total for s, count in zip(self.streams, self.positions, strict=True) if s.name}

    def give_back(self) -> None:
        """The optimiser step that the last batch belongs to was not made: a run that resumes begins with that step."""
        if len(self.step_pieces) == self.batches_per_step:  # otherwise the place is still the one before the step
            self._state = self._state_before

    def _keys(self, stream: Stream, place: Place) -> Iterator[Key]:
        """The examples of a stream from the given place on, in the order in which they are used."""
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
        return shuffled(len(stream.indices), mix(self.documents.seed, epoch, stream.indices.stop))

    def _reopened(self, row: Sequence[Piece]) -> list[tuple[int, tuple[Piece, FlatDocument]]]:
        """What waits in an open row, made again, with its lengths; less what cannot be used any more."""
        waiting = []
        for epoch, index, number in row:
            documents = self.documents[epoch, index]
            if isinstance(documents, Skipped):
                self._count_skipped(documents)
                continue
            waiting += [((epoch, index, number), document) for document in documents[number : number + 1]]
            if number >= len(documents) or sum(len(document.tokens) for _, document in waiting) > self.length:
                raise InputError(
                    "the documents that waited in an open row when the checkpoint was written are not as they were: "
                    "continue with the data and the data.sequence_length that it had, or start from its weights with "
                    "model.init_from"
                )
        return [(len(document.tokens), (piece, document)) for piece, document in waiting]

    def _weigh(self, places: list[Place], batches: int) -> None:
        """Give each stream the weight that it has after so many batches. Where that is another than before, all count
        from here, so that one which was left out so far has nothing to catch up on."""
        weights = [stream.weight_after(batches) for stream in self.streams]
        if weights == [place.weight for place in places]:
            return
        for place, weight in zip(places, weights, strict=True):
            place.weight, place.served = weight, 0.0
        self.positions = [0] * len(places)
        if self.rank == 0:
            shares = ", ".join(f"{place.name} {place.weight:.3g}" for place in places)
            log.info("after %d batches, the shares are now %s", batches, shares)

    def _place(self, places: list[Place], packer: FirstFit[tuple[Piece, FlatDocument]], batches: int) -> dict[str, Any]:
        return {
            "streams": [asdict(place) for place in places],
            "open": [[piece for _, (piece, _) in row] for row in packer.rows],
            "batches": batches,
        }

    def _collate(self, rows: Rows) -> PackedBatch:
        documents = [[document for _, document in row] for row in rows]
        return collate(documents, self.length, self.documents.tokenizer.pad, self.image_shape)

    def _count_skipped(self, skipped: Skipped) -> None:
        if not self.skipped[skipped.reason]:
            log.warning("skipped %s: %s (more of this kind are only counted)", skipped.name, skipped.reason)
        self.skipped[skipped.reason] += 1

    def _skip(self, skipped: Skipped, stream: Stream, place: Place) -> None:
        """Count it, in the epoch too, which may go on after a stop."""
        self._count_skipped(skipped)
        place.skip(skipped)
        total = sum(count for count, _ in place.skipped.values())
        own = len(range(self.rank, len(stream.indices), self.world_size))
        if self.endless and total > self.max_skipped * own:
            process = "" if self.world_size == 1 else f" ({own} of them this process's)"
            raise InputError(
                f"{total} of the {stream.examples}{process} cannot be used, which is more than the share of "
                f"{self.max_skipped:g} that data.max_skipped allows: {in_words(place.skipped)}; mend them, or allow "
                "more and go on with --ckpt_path last"
            )

    def _count_cut(self, key: Key, place: Place) -> None:
        if not self.cut:
            log.warning(
                "the text of example %d is cut to what a row has room for beside its images (more are only counted); "
                "longer rows, data.sequence_length, have more room",
                key[1],
            )
        self.cut += 1
        place.cut += 1

    def _end_epoch(self, stream: Stream, place: Place) -> None:
        skipped = ", ".join(f"{reason}: {count}" for reason, (count, _) in sorted(place.skipped.items()))
        if not place.usable:
            raise InputError(f"not one of the {stream.examples} can be used ({skipped or 'no examples'})")
        found = [f"skipped: {skipped}"] * bool(skipped) + [f"cut: {place.cut}"] * bool(place.cut)
        if found and found != self._told.get(stream.name):  # the same in each epoch need not be said again
            log.warning("in epoch %d, of %s %s", place.epoch, stream.examples, "; ".join(found))
            self._told[stream.name] = found


def told(names: list[str]) -> str:
    return f"a mix of {', '.join(names)}" if any(names) else "one source"
