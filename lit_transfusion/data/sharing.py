"""What is left of an epoch when a run goes on with another number of processes: shared out anew, nothing lost."""

from collections.abc import Callable, Sequence
from typing import Any

from lit_transfusion.data.sources.base import Stream

# Where a stream stands that has not begun: `used` and `pieces` are of this process's share of the epoch, which begins
# behind the first `base` examples of the order; `todo`, what other processes have left, comes before.
START = {"epoch": 0, "base": 0, "used": 0, "pieces": 0, "served": 0.0, "skipped": {}, "todo": []}


def shared_out(
    ranks: Sequence[dict[str, Any]],
    streams: Sequence[Stream],
    order: Callable[[Stream, int], Sequence[int]],
    world_size: int,
) -> list[dict[str, Any]]:
    """The states of `world_size` processes that go on where those of `ranks` stopped.

    Processes use up their shares at their own pace, so that what is used is not the beginning of an epoch. Up to the
    example that the fastest has come to, what the others have not used is listed, as (epoch, index, pieces that are
    used), and shared out; behind it, the epoch goes on in new shares. Documents in open rows are shared out by rows.
    Skips of the epoch are counted anew.

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
        places = [state["streams"][number] for state in ranks]
        last = max(place["epoch"] for place in places)
        farthest = max(
            place["base"] + (place["used"] + (place["pieces"] > 0)) * len(ranks)
            for place in places
            if place["epoch"] == last
        )
        todo = [item for place in places for item in place["todo"]]
        for rank, place in enumerate(places):
            start, pieces = place["base"] + rank + place["used"] * len(ranks), place["pieces"]
            for epoch in range(place["epoch"], last + 1):
                stop = min(farthest if epoch == last else len(stream.indices), len(stream.indices))
                for position in range(start, stop, len(ranks)):
                    todo.append([epoch, stream.indices[int(order(stream, epoch)[position])], pieces])
                    pieces = 0
                start = rank
        place = {"name": stream.name, "weight": places[0]["weight"], "epoch": last, "base": farthest}
        place["served"] = sum(place["served"] for place in places) / world_size
        todo.sort(key=lambda item: item[0])
        for rank, state in enumerate(new):
            state["streams"].append(START | place | {"todo": todo[rank::world_size]})
    return new
