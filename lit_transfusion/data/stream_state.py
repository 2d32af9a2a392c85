"""The resumable position of a process in its streams, and its conversion to another number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lit_transfusion.data.sources.base import Stream
from lit_transfusion.data.types import Skipped
from lit_transfusion.data.worker_feed import MadeDocument
from lit_transfusion.errors import InputError
from lit_transfusion.wording import counted


@dataclass
class Place:
    """The position of a process in its share of a stream. A checkpoint contains it as plain data.

    Args:
        name: Name of the stream in a mix.
        weight: Present weight of the stream.
        examples: Number of examples of the stream; with another number, the position is invalid.
        epoch: Present epoch.
        base: Examples at the start of the epoch's order that were used before the number of processes changed. The
            shares of the processes start after them.
        used: Examples of this process's share that are used.
        pieces: Documents of the next example that are used.
        served: Positions given since the weights last changed, divided by the weight.
        usable: Whether the epoch has given any document.
        skipped: Reason → [number of skipped examples in this epoch, name of the first].
        cut: Number of texts cut in this epoch.
        todo: [epoch, index, used documents] of examples left over by other processes; they are used first.
    """

    name: str
    weight: float
    examples: int
    epoch: int = 0
    base: int = 0
    used: int = 0
    pieces: int = 0
    served: float = 0.0
    usable: bool = False
    skipped: dict[str, list] = field(default_factory=dict)
    cut: int = 0
    todo: list[list[int]] = field(default_factory=list)

    def was_used(self, made: MadeDocument) -> bool:
        """Whether this document was already used, before a stop between the documents of its example."""
        return made.piece < (self.todo[0][2] if self.todo else self.pieces) and not made.last

    def starts_later_epoch(self, made: MadeDocument) -> bool:
        """Whether this document belongs to a later epoch."""
        return not self.todo and made.key[0] != self.epoch

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.base, self.used, self.usable, self.skipped, self.cut = epoch, 0, 0, False, {}, 0

    def advance(self, made: MadeDocument) -> None:
        """Mark the next document, `made`, as used."""
        if self.todo:
            self.todo[:1] = [] if made.last else [[*made.key, made.piece + 1]]
        elif made.last:
            self.used, self.pieces = self.used + 1, 0
        else:
            self.pieces = made.piece + 1

    def skip(self, skipped: Skipped) -> None:
        count, first = self.skipped.get(skipped.reason, (0, skipped.name))
        self.skipped[skipped.reason] = [count + 1, first]


def check_state(saved: dict[str, Any], own: dict[str, Any], streams: Sequence[Stream]) -> None:
    """Check that a saved state of a `PackedLoader` fits one with the state `own` and these streams.

    Raises:
        InputError: The state belongs to another version, other sources, or another number of examples.
    """
    if saved.keys() != own.keys() or saved["streams"][0].keys() != own["streams"][0].keys():
        raise InputError(
            "the checkpoint was written by another version of lit_transfusion, whose data position cannot be read; "
            "start from its weights with model.init_from"
        )
    theirs = [place["name"] for place in saved["streams"]]
    mine = [stream.name for stream in streams]
    if theirs != mine:
        raise InputError(
            f"the checkpoint has {describe_sources(theirs)} but this run has {describe_sources(mine)}; "
            "use the same sources in the same order, or start from its weights with model.init_from"
        )
    for place, stream in zip(saved["streams"], streams, strict=True):
        if place["examples"] != len(stream.indices):
            raise InputError(
                f"the checkpoint has {counted(place['examples'], 'example')} but this run has "
                f"{stream.examples}, so the saved data position is invalid; use the data of the checkpoint, or "
                "start from its weights with model.init_from"
            )


def describe_sources(names: list[str]) -> str:
    """The sources of a run, in words for a message."""
    return f"a mix of {', '.join(names)}" if any(names) else "one source"


def reshard(
    ranks: Sequence[dict[str, Any]],
    streams: Sequence[Stream],
    order: Callable[[Stream, int], Sequence[int]],
    world_size: int,
) -> list[dict[str, Any]]:
    """Convert the saved states of all processes to states of `world_size` processes. No document is lost or repeated.

    Processes use their shares at different speeds, so the used examples are not simply the first ones of an epoch. The
    unused examples before the position of the fastest process are listed and divided among the new processes. After
    that position, the epoch continues in new shares. Open rows are divided as whole rows. Skips are counted anew.

    Args:
        ranks: The states of all processes, as saved by `PackedLoader`.
        streams: The streams that they read.
        order: (stream, epoch) → positions in the stream, in the order of that epoch.
        world_size: The new number of processes.
    """
    rows = [row for state in ranks for row in state["open"]]
    batches = ranks[0]["batches"]  # equal for all processes
    new = [{"streams": [], "open": rows[rank::world_size], "batches": batches} for rank in range(world_size)]
    for number, stream in enumerate(streams):
        places = [Place(**state["streams"][number]) for state in ranks]
        last = max(place.epoch for place in places)
        farthest = max(
            place.base + (place.used + (place.pieces > 0)) * len(ranks) for place in places if place.epoch == last
        )
        todo = [item for place in places for item in place.todo]
        for rank, place in enumerate(places):
            start, pieces = place.base + rank + place.used * len(ranks), place.pieces
            for epoch in range(place.epoch, last + 1):
                stop = min(farthest if epoch == last else len(stream.indices), len(stream.indices))
                for position in range(start, stop, len(ranks)):
                    todo.append([epoch, stream.indices[int(order(stream, epoch)[position])], pieces])
                    pieces = 0
                start = rank
        todo.sort(key=lambda item: item[0])
        served = sum(place.served for place in places) / world_size
        usable = any(place.usable for place in places)
        for rank, state in enumerate(new):
            place = Place(
                stream.name,
                places[0].weight,
                places[0].examples,
                last,
                farthest,
                served=served,
                usable=usable,
                todo=todo[rank::world_size],
            )
            state["streams"].append(asdict(place))
    return new
