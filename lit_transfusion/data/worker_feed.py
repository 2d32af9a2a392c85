"""The worker processes that make the documents of several streams, each stream in its own order."""

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import DataLoader, Dataset

from lit_transfusion.data.packing import FlatDocument
from lit_transfusion.data.types import Skipped

Key = tuple[int, int]  # (epoch, index): with the seed, it determines the documents of an example


class MadeDocument(NamedTuple):
    """A document made by a worker, or the reason why there is none."""

    key: Key
    piece: int  # number of the document within its example
    last: bool  # whether it is the last document of its example
    document: FlatDocument | Skipped


class Feed:
    """Returns the next document of a given stream.

    Requests go to the workers in advance, always for the stream with the fewest examples requested or waiting, so that
    only a few dozen wait. The order within a stream does not depend on the time of the requests, and so not on the
    number of workers.

    Args:
        documents: Maps a key to the documents of that example.
        streams: For each stream, its keys in the order of use.
        num_workers: Processes that make documents; 0 makes them in this process.
    """

    def __init__(self, documents: Dataset, streams: Sequence[Iterator[Key]], num_workers: int) -> None:
        self._asked: deque[tuple[int, Key]] = deque()  # requests without an answer yet, in their order
        self._ready: list[deque[MadeDocument]] = [deque() for _ in streams]
        self._ahead = [0] * len(streams)  # examples of each stream that were requested and are not used up
        self._made = iter(
            DataLoader(
                documents,
                sampler=requested_keys(list(streams), self._asked, self._ahead),
                batch_size=None,
                num_workers=num_workers,
                prefetch_factor=16 if num_workers else None,
                worker_init_fn=ignore_stop_signals,
                collate_fn=pass_through,
            )
        )

    def take(self, stream: int) -> MadeDocument | None:
        """The next document of a stream; None at its end."""
        ready = self._ready[stream]
        while not ready:
            documents = next(self._made, None)
            if documents is None:
                return None
            other, key = self._asked.popleft()
            documents = [documents] if isinstance(documents, Skipped) else documents
            for piece, document in enumerate(documents):
                self._ready[other].append(MadeDocument(key, piece, piece == len(documents) - 1, document))
        made = ready.popleft()
        self._ahead[stream] -= made.last
        return made


def requested_keys(keys: list[Iterator[Key]], asked: deque[tuple[int, Key]], ahead: list[int]) -> Iterator[Key]:
    """Choose the next request and note it in `asked`.

    This is no method: a reference to the feed would keep its workers alive.
    """
    while True:
        stream = ahead.index(min(ahead))
        key = next(keys[stream], None)
        if key is None:
            return
        ahead[stream] += 1
        asked.append((stream, key))
        yield key


def ignore_stop_signals(worker: int) -> None:
    """Ignore Ctrl-C and the first SIGTERM in a worker; the main process stops its workers.

    A terminal or a cluster sends these signals to all processes, but the main process may need this worker for one more
    step. A worker that does not end by itself receives a second SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def pass_through(documents: list[FlatDocument] | Skipped) -> list[FlatDocument] | Skipped:
    """Return documents unchanged. DataLoader's default would search every list for arrays to convert to tensors."""
    return documents
