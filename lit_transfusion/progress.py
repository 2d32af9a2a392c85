"""Progress of long work on standard error: bars on a terminal or in a notebook, otherwise occasional lines."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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


@dataclass(eq=False)
class Row:
    """The progress of one piece of work.

    Args:
        doing: Description.
        total: Total amount; None if it is unknown.
        done: Amount that is done before the start.
        unit: Name of the unit.
        count: Function that returns the amount done, called when a line or bar is shown; None if `update` reports it.
        note: Text to show after the amount.
    """

    doing: str
    total: float | None = None
    done: float = 0
    unit: str = ""
    count: Callable[[], float] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        self.start, self.first = time.monotonic(), self.done

    def update(self, done: float, doing: str | None = None, total: float | None = None, note: str = "") -> None:
        if doing is not None and doing != self.doing:
            self.doing, self.total = doing, total
            self.start, self.first = time.monotonic(), done
        self.done, self.note = done, note
        self.total = self.total if total is None else total

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.start, 1e-9)

    @property
    def left(self) -> float:
        """Seconds until the end, or 0 if that is unknown."""
        return (self.total - self.done) / self.rate if self.total is not None and self.rate > 0 else 0.0

    @property
    def expected(self) -> float:
        """Expected seconds from the start to the end; those until now if the rest is unknown."""
        return time.monotonic() - self.start + self.left

    def __str__(self) -> str:
        """Amount, note, rate and time, such as "3 of 7 pictures, 0.5 pictures/s, 8 s left"."""
        if self.count is not None:
            self.done = self.count()
        of_total = "" if self.total is None else f"{int(self.done)} of {int(self.total)} {self.unit}".rstrip()
        rate = f"{self.rate:.3g} {self.unit}/s" if self.unit and self.rate > 0 else ""
        seconds = time.monotonic() - self.start
        clock = f"{duration(self.left)} left" if self.left > 0 else f"in {duration(seconds)}"
        return ", ".join(filter(None, (of_total, self.note, rate, clock)))


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
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, name="progress", daemon=True)
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Progress":
        self.start()
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self.stop(failed=kind is not None)

    def start(self) -> None:
        if self.bars:
            self._live.start()
        elif self.shown:
            self._lines.start()

    def stop(self, failed: bool = False) -> None:
        """Stop, and print a last line with the time taken, unless the work failed or no line was printed before."""
        self._live.stop()
        self._ended.set()
        if self._lines.is_alive():
            self._lines.join()
        if not failed and self.num_lines:
            self._print_line()

    def add(self, doing: str, *arguments: Any, **options: Any) -> Row:
        """Add a row; see `Row` for the arguments."""
        self.rows.append(Row(doing, *arguments, **options))
        return self.rows[-1]

    def remove(self, row: Row) -> None:
        self.rows.remove(row)

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        if self.bars:
            self._live.console.print(text, markup=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for row in list(self.rows):
            shown = Text(str(row))  # reads the amount
            table.add_row(Text(row.doing), ProgressBar(row.total, row.done, width=20), shown)
        return table

    def _print_lines(self) -> None:
        while not self._ended.wait(0.5):
            if self.pace.due:
                self._print_line()

    def _print_line(self) -> None:
        """Print all rows in one line."""
        rows = [row for row in list(self.rows) if row.doing]
        if rows:
            self.num_lines += 1
            self.say("; ".join(f"{row.doing}: {row}" for row in rows))
            self.pace.printed(max(row.expected for row in rows))


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
