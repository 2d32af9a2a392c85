"""A bar that follows a number which other processes raise; in a log, a line now and then."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 60

log = logging.getLogger(__name__)


class _Following(Progress):
    """Asks for the number whenever it draws itself."""

    count: Callable[[], int] = lambda: 0

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            self.update(task.id, completed=self.count(), rate=f"{task.speed or 0:.0f} pictures/s")
        return super().get_renderables()


@contextmanager
def following(total: int, count: Callable[[], int]) -> Iterator[Callable[[], None]]:
    """Shows how far `count()` is on its way to `total`, how fast it rises and how long it still takes. Gives a function
    to call when something is done: where there is no terminal, it writes the line."""
    console = Console(stderr=True)
    began, start = time.monotonic(), count()
    written = began

    def line() -> None:
        nonlocal written
        now = time.monotonic()
        if console.is_terminal or now - written < SECONDS_BETWEEN_LINES:
            return
        written = now
        rate = (count() - start) / (now - began)
        left = (total - count()) / rate / 60 if rate else float("inf")
        log.info("%d of %d pictures, %.0f pictures/s, %.0f min left", count(), total, rate, left)

    columns = [TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with _Following(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.count = count
        progress.add_task("preparing", total=total, completed=start, rate="")
        yield line
