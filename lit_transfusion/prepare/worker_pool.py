"""Shares work among processes, and explains what ended it early."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

from lit_transfusion.errors import InputError

RESUME_HINT = "finished shards are saved; run the same command again to resume"

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


class TooManySkipped(InputError):
    """Another run of the same command would end in the same way."""


def in_workers(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    prefetch: int = 2,
    in_order: bool = True,
) -> Iterator[Result]:
    """Call `work` for each item, and yield the results.

    Args:
        work: A function that can be pickled. Its InputErrors are raised here, without the traceback of a worker.
        items: Its arguments.
        num_workers: Number of processes; 0 works in this one.
        prefetch: Items that a process works on in advance.
        in_order: Whether results have the order of the items, or that in which they are finished.
    """
    results = DataLoader(
        _Work(work),
        sampler=items,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=_unchanged,
        in_order=in_order,
    )
    for result in results:
        if isinstance(result, InputError):
            raise result
        yield result


class _Work(Dataset):
    """Maps an item to its result, or to an InputError: raised in a worker, it would have a traceback."""

    def __init__(self, work: Callable[[Item], Result]) -> None:
        self.work = work

    def __getitem__(self, item: Item) -> Result | InputError:
        try:
            return self.work(item)
        except InputError as error:
            return error


def _unchanged(result: Result) -> Result:
    """Replaces the default of DataLoader, which would search every result for arrays to convert to tensors."""
    return result


def workers(wanted: int | None, most: int) -> int:
    """The number of processes: `wanted` or one for each CPU, but at most `most`."""
    if wanted is None:
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, most)


@contextmanager
def explained_interruptions() -> Iterator[None]:
    """Tell the user how to resume after an interruption, an error or the end of a killed worker."""
    try:
        yield
    except KeyboardInterrupt:
        log.info(RESUME_HINT)
        raise
    except TooManySkipped:
        raise
    except InputError as error:
        raise InputError(f"{error}; {RESUME_HINT}") from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # another error
            raise
        message = f"{str(error).splitlines()[0]}; fewer --num_workers need less memory; {RESUME_HINT}"
        raise InputError(message) from error
