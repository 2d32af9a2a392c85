"""Where a process stands in what it goes through, and where others do that go on in its place."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lit_transfusion.data.sources.base import Stream
from lit_transfusion.data.types import Skipped
from lit_transfusion.data.worker_feed import Made


@dataclass
class Place:
    """Where a process stands in a stream, of which each process has a share; a checkpoint holds it as plain data.

    Args:
        name: Of the stream, in a mix.
        weight: By which it is served now.
        examples: That the stream has: among more or fewer, no number here means what it meant.
        epoch: That it is in.
        base: Examples, from the beginning of the epoch's order, that were used up before the processes were as many as
            they are; their shares begin behind them.
        used: Examples of this process's share that are used up.
        pieces: Documents of the next one that are used.
        served: Positions that it has given, by weight, since the weights are what they are.
        usable: Whether the epoch has given any document.
        skipped: Reason → how many of the epoch's examples, and the name of the first.
        cut: How many of the epoch's texts were cut.
        todo: (epoch, index, documents that are used) of examples that other processes have left; they come before all
            else.
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

    def has_given(self, made: Made) -> bool:
        """Whether this document was used before a stop in the midst of its example."""
        return made.piece < (self.todo[0][2] if self.todo else self.pieces) and not made.last

    def is_behind(self, made: Made) -> bool:
        """Whether this document is of a later epoch."""
        return not self.todo and made.key[0] != self.epoch

    def begin(self, epoch: int) -> None:
        self.epoch, self.base, self.used, self.usable, self.skipped, self.cut = epoch, 0, 0, False, {}, 0

    def advance(self, made: Made) -> None:
        """Past this document, which is the next."""
        if self.todo:
            self.todo[:1] = [] if made.last else [[*made.key, made.piece + 1]]
        elif made.last:
            self.used, self.pieces = self.used + 1, 0
        else:
            self.pieces = made.piece + 1

    def skip(self, skipped: Skipped) -> None:
        count, first = self.skipped.get(skipped.reason, (0, skipped.name))
        self.skipped[skipped.reason] = [count + 1, first]


def shared_out(
    ranks: Sequence[dict[str, Any]],
    streams: Sequence[Stream],
    order: Callable[[Stream, int], Sequence[int]],
    world_size: int,
) -> list[dict[str, Any]]:
    """The states of `world_size` processes that go on where those of `ranks` stopped: nothing is lost or given twice.

    Processes use up their shares at their own pace, so that what is used is not the beginning of an epoch. Up to the
    example that the fastest has come to, what the others have not used is listed and shared out; behind it, the epoch
    goes on in new shares. Documents in open rows are shared out by rows. Skips of the epoch are counted anew.

    Args:
        ranks: The states of all processes, as `PackedLoader` keeps them.
        streams: What they go through.
        order: (stream, epoch) → positions in the stream, in the order of that epoch.
        world_size: The new number of processes.
    """
    rows = [row for state in ranks for row in state["open"]]
    batches = ranks[0]["batches"]  # of each process, and so as many of all
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
