"""Shares work among processes, and explains what ended it early."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

from lit_transfusion.data.worker_feed import pass_through
from lit_transfusion.errors import InputError

RESUME_HINT = "finished shards are saved; run the same command again to resume"

Argument = TypeVar("Argument")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


class TooManySkipped(InputError):
    """Another run of the same command would end in the same way."""


def in_workers(
    work: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    num_workers: int,
    prefetch: int = 2,
    in_order: bool = True,
) -> Iterator[Result]:
    """Call `work` with each argument, and yield the results.

    Args:
        work: A function that can be pickled. Its InputErrors are raised here, without the traceback of a worker.
        arguments: One for each call.
        num_workers: Number of processes; 0 works in this one.
        prefetch: Results that a process makes in advance.
        in_order: Whether results have the order of the arguments, or that in which they are finished.
    """
    results = DataLoader(
        _Work(work),
        sampler=arguments,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=pass_through,
        in_order=in_order,
    )
    for result in results:
        if isinstance(result, InputError):
            raise result
        yield result


class _Work(Dataset):
    """Maps an argument to its result, or to an InputError: raised in a worker, it would have a traceback."""

    def __init__(self, work: Callable[[Argument], Result]) -> None:
        self.work = work

    def __getitem__(self, argument: Argument) -> Result | InputError:
        try:
            return self.work(argument)
        except InputError as error:
            return error


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
