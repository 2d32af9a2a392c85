"""Progress of long work on standard error: bars on a terminal or in a notebook, otherwise occasional lines."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import progress as rich_progress
from rich.console import Console

OnProgress = Callable[[str, float, float | None], None]  # (description, amount done, total or None)


def silent(doing: str, done: float, total: float | None) -> None:
    """An `OnProgress` that shows nothing."""


class Pace:
    """Decides when the next line is due.

    The first line is due soon after the start. Each further one is due after as long as the time since the start, but
    at most after a minute, or after 1 % of the expected time if that is longer (at most 10 minutes).

    Args:
        first: Seconds until the first line.
    """

    def __init__(self, first: float = 2.0) -> None:
        self.start = time.monotonic()
        self.next = self.start + first

    @property
    def due(self) -> bool:
        return time.monotonic() >= self.next

    def printed(self, expected: float = 0.0) -> None:
        """Register that a line was printed. `expected` is the total time in seconds, or 0 if it is unknown."""
        now = time.monotonic()
        longest = min(max(60.0, expected / 100), 600.0)
        self.next = now + min(max(now - self.start, 2.0), longest)


class Row:
    """The progress of one piece of work.

    Args:
        doing: Description.
        total: Total amount; None if it is unknown.
        done: Amount that is done before the start.
        unit: Name of the unit.
        count: Function that returns the amount done, called every half a second; None if `update` reports it.
    """

    def __init__(
        self, doing: str, total: float | None, done: float, unit: str, count: Callable[[], float] | None
    ) -> None:
        self.unit = unit
        self.count = count
        self.note = ""
        self._restart(doing, total, done)

    def _restart(self, doing: str, total: float | None, done: float) -> None:
        self.doing, self.total, self.done = doing, total, done
        self.start, self.first = time.monotonic(), done

    def update(self, done: float, doing: str | None = None, total: float | None = None, note: str = "") -> None:
        if doing is not None and doing != self.doing:
            self._restart(doing, total, done)
        self.done, self.note = done, note
        self.total = self.total if total is None else total

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.start, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds until the end, or None if that is unknown."""
        return (self.total - self.done) / self.rate if self.total is not None and self.rate > 0 else None

    @property
    def expected(self) -> float:
        """Expected seconds from the start to the end; those until now if the rest is unknown."""
        return time.monotonic() - self.start + (self.left or 0.0)

    @property
    def counted(self) -> str:
        """Amount done and total, such as "3 of 7 pictures"; empty if the total is unknown."""
        if self.total is None:
            return ""
        return " ".join(filter(None, (f"{int(self.done)} of {int(self.total)}", self.unit)))

    def __str__(self) -> str:
        passed = time.monotonic() - self.start
        parts = [self.counted, self.note]
        if self.unit and self.rate > 0:
            parts.append(f"{self.rate:.3g} {self.unit}/s")
        ended = self.total is not None and self.done >= self.total
        parts.append(f"{duration(self.left)} left" if self.left and not ended else f"in {duration(passed)}")
        return f"{self.doing}: {', '.join(filter(None, parts))}"


class Progress:
    """Shows rows while the context is open.

    with Progress() as progress:
        row = progress.add("drawing", total=64, unit="pictures")
        row.update(done=3)

    If there are several processes, only the first one shows anything.

    Args:
        shown: If False, nothing is shown.
    """

    def __init__(self, shown: bool = True) -> None:
        self.rows: list[Row] = []
        self.shown = shown and is_first_process()
        self.bars = self.shown and shows_bars()
        self.pace = Pace()
        self.num_lines = 0
        self._tasks: dict[Row, rich_progress.TaskID] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        self.start()
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self.stop(failed=kind is not None)

    def start(self) -> None:
        self._rich = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[counted]}"),
            rich_progress.TextColumn("{task.fields[note]}"),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(),
            console=Console(stderr=True, soft_wrap=True, highlight=False),
            transient=True,
            disable=not self.bars,
        )
        self._rich.start()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        if self.shown:
            self._thread.start()

    def stop(self, failed: bool = False) -> None:
        """Stop, and print a last line with the time taken, unless the work failed or no line was printed before."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._rich.stop()
        if not failed and self.num_lines:
            self._read_counts()
            self._print_line()

    def add(
        self,
        doing: str,
        total: float | None = None,
        done: float = 0,
        unit: str = "",
        count: Callable[[], float] | None = None,
    ) -> Row:
        row = Row(doing, total, done, unit, count)
        with self._lock:
            if self.bars:
                self._tasks[row] = self._rich.add_task(doing, total=total, completed=done, counted="", note="")
            self.rows.append(row)
        return row

    def remove(self, row: Row) -> None:
        with self._lock:
            self.rows.remove(row)
            if row in self._tasks:
                self._rich.remove_task(self._tasks.pop(row))

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        if self.bars:
            self._rich.console.print(text, markup=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def _follow(self) -> None:
        while not self._ended.wait(0.5):
            with self._lock:
                self._read_counts()
                if self.bars:
                    self._draw()
                elif self.pace.due:
                    self._print_line()

    def _read_counts(self) -> None:
        for row in self.rows:
            if row.count is not None:
                row.done = row.count()

    def _draw(self) -> None:
        for row, task in self._tasks.items():
            self._rich.update(
                task,
                description=row.doing,
                total=row.total,
                completed=row.done,
                counted=row.counted,
                note=row.note,
            )

    def _print_line(self) -> None:
        """Print all rows in one line."""
        shown = [row for row in self.rows if row.doing]
        if shown:
            self.num_lines += 1
            self.say("; ".join(map(str, shown)))
            self.pace.printed(max(row.expected for row in shown))


@contextmanager
def reporting(unit: str = "") -> Iterator[OnProgress]:
    """Show one row, and yield the function that updates it."""
    with Progress() as progress:
        row = progress.add("", unit=unit)
        yield lambda doing, done, total: row.update(done, doing, total)


def shows_bars() -> bool:
    """Whether standard error is a terminal, or a notebook."""
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return terminal or Console(stderr=True).is_jupyter


def is_first_process() -> bool:
    """Whether this is rank 0, by the variables that launchers set."""
    return not any(int(os.environ.get(name, 0)) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def duration(seconds: float) -> str:
    """Format seconds as "12 s", "3 min", "2 h 5 min" or "3 d 4 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes % (24 * 60) // 60} h"
