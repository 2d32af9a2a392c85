"""Counts and reports the examples that cannot be used and the texts that are cut."""

import logging
from collections import Counter

from lit_transfusion.data.sources.base import Stream
from lit_transfusion.data.stream_state import Place
from lit_transfusion.data.types import Skipped, format_reasons
from lit_transfusion.data.worker_feed import Key
from lit_transfusion.errors import InputError

log = logging.getLogger(__name__)


class SkipReport:
    """What a process has skipped and cut. The counts of an epoch are in its `Place`, so that a resumed run keeps them.

    Each reason is logged once with an example, and each epoch once with its counts.

    Args:
        max_skipped: Largest share of unusable examples of a stream in one epoch; None only counts.
        rank: Index of this process.
        world_size: Number of processes, each of which counts its own share of the examples.
    """

    def __init__(self, max_skipped: float | None, rank: int = 0, world_size: int = 1) -> None:
        self.max_skipped = max_skipped
        self.rank = rank
        self.world_size = world_size
        self.skipped: Counter[str] = Counter()  # reason → examples, in all epochs
        self.cut = 0  # documents whose text was cut to the length of a row
        self._last: dict[str, str] = {}  # stream → the last warning about one of its epochs

    def count(self, skipped: Skipped) -> None:
        if not self.skipped[skipped.reason]:
            log.warning("skipped %s: %s (others of this kind are only counted)", skipped.name, skipped.reason)
        self.skipped[skipped.reason] += 1

    def skip(self, skipped: Skipped, stream: Stream, place: Place) -> None:
        """Count a skipped example of the present epoch.

        Raises:
            InputError: It is one more than `max_skipped` allows.
        """
        self.count(skipped)
        place.skip(skipped)
        total = sum(count for count, _ in place.skipped.values())
        own = len(range(self.rank, len(stream.indices), self.world_size))
        if self.max_skipped is not None and total > self.max_skipped * own:
            process = "" if self.world_size == 1 else f" ({own} of them for this process)"
            raise InputError(
                f"{total} of the {stream.examples}{process} cannot be used, more than the share data.max_skipped "
                f"{self.max_skipped:g} allows: {format_reasons(place.skipped)}; fix them, or raise data.max_skipped "
                "and resume with --ckpt_path last"
            )

    def count_cut(self, key: Key, place: Place) -> None:
        if not self.cut:
            log.warning(
                "the text of example %d is cut, because it does not fit into a row with its images (others are only "
                "counted); increase data.sequence_length to keep all of it",
                key[1],
            )
        self.cut += 1
        place.cut += 1

    def end_epoch(self, stream: Stream, place: Place) -> None:
        """Log the counts of an epoch, unless they are those of the epoch before.

        Raises:
            InputError: No example of the epoch could be used.
        """
        skipped = ", ".join(f"{reason}: {count}" for reason, (count, _) in sorted(place.skipped.items()))
        if not place.usable:
            raise InputError(
                f"none of the {stream.examples} can be used ({skipped or 'no examples'}); check data.source"
            )
        counts = "; ".join([f"skipped: {skipped}"] * bool(skipped) + [f"cut: {place.cut}"] * bool(place.cut))
        if counts and counts != self._last.get(stream.name):
            log.warning("epoch %d: of %s, %s", place.epoch, stream.examples, counts)
            self._last[stream.name] = counts
