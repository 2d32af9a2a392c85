"""Documents of several streams, made by the same workers, each stream in its own order."""

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import DataLoader, Dataset

from lit_transfusion.data.packing import FlatDocument
from lit_transfusion.data.types import Skipped

Key = tuple[int, int]  # (epoch, index): all that the documents of an example depend on, beside the seed


class Made(NamedTuple):
    """A document that a worker made of an example, or why there is none."""

    key: Key
    piece: int  # which of the example's documents
    last: bool  # whether it is the last of them
    document: FlatDocument | Skipped


class Feed:
    """Hands out the next document of whichever stream is asked for.

    Workers are asked in advance, always for the stream that has the fewest documents on their way or waiting here, so
    that no more wait than a few dozen. What comes next in a stream does not depend on when it is asked for, and so not
    on the number of workers either.

    Args:
        documents: Key → the documents of that example.
        streams: Of each the keys in the order in which they are used.
        num_workers: Processes that make documents; 0 makes them here.
    """

    def __init__(self, documents: Dataset, streams: Sequence[Iterator[Key]], num_workers: int) -> None:
        self._asked: deque[tuple[int, Key]] = deque()  # what the workers have not handed over yet, in their order
        self._ready: list[deque[Made]] = [deque() for _ in streams]
        self._ahead = [0] * len(streams)  # examples of each stream that were asked for and are not used up
        self._made = iter(
            DataLoader(
                documents,
                sampler=ask(list(streams), self._asked, self._ahead),
                batch_size=None,
                num_workers=num_workers,
                prefetch_factor=16 if num_workers else None,
                worker_init_fn=leave_stopping_to_the_run,
                collate_fn=as_it_is,
            )
        )

    def take(self, stream: int) -> Made | None:
        """The next document of a stream, None when it has come to its end."""
        ready = self._ready[stream]
        while not ready:
            documents = next(self._made, None)
            if documents is None:
                return None
            other, key = self._asked.popleft()
            documents = [documents] if isinstance(documents, Skipped) else documents
            for piece, document in enumerate(documents):
                self._ready[other].append(Made(key, piece, piece == len(documents) - 1, document))
        made = ready.popleft()
        self._ahead[stream] -= made.last
        return made


def ask(keys: list[Iterator[Key]], asked: deque[tuple[int, Key]], ahead: list[int]) -> Iterator[Key]:
    """What workers are asked for, noted down. No method: referring to the feed, it would keep workers alive."""
    while True:
        stream = ahead.index(min(ahead))
        key = next(keys[stream], None)
        if key is None:
            return
        ahead[stream] += 1
        asked.append((stream, key))
        yield key


def leave_stopping_to_the_run(worker: int) -> None:
    """Ignore Ctrl-C and the first SIGTERM in a worker: a terminal or a cluster sends them to all processes, and the
    main process may need this worker for one more step. A worker that does not end then gets a second SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def as_it_is(documents: list[FlatDocument] | Skipped) -> list[FlatDocument] | Skipped:
    """In place of DataLoader's own, which would look through every list for arrays to turn into tensors."""
    return documents
