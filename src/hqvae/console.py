"""What a person sees while work goes on: a progress bar, sentences and tables.

On a terminal everything fits its width. Piped output is plain, one line each, and untruncated.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import TracebackType

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 120  # of prose; tables are as wide as they need to be
_FIRST_STEPS = 5  # after which piped output says how long all of them will take
_PIPED_EVERY = 60.0  # seconds between lines of what goes on
_SPEED_WINDOW = 3600.0  # seconds; rich's own 30 know no speed where a step takes minutes


class _TwoLines(Progress):
    """Bar and time left on one line, figures on the next: both are whole at 80 columns."""

    status = ""

    def get_renderables(self):  # type: ignore[no-untyped-def]
        yield self.make_tasks_table(self.tasks)
        if self.status:
            yield Text(self.status, no_wrap=True, overflow="ellipsis")


class ProgressBar:
    """Progress over `total` steps, of which `completed` are done already.

    A bar on a terminal. When piped there is no bar, and `update` prints a plain line. Silent when
    `quiet`, as all processes but the first are.

    >>> with ProgressBar(total=2, completed=0, quiet=True) as progress_bar:
    ...     progress_bar.update(1, "PSNR 21.3 dB")
    """

    def __init__(self, total: int, completed: int, quiet: bool):
        self.total = total
        self.completed = completed
        self.began = time.monotonic()
        self.shown = self.began
        self.quiet = quiet
        self.console = Console(file=sys.stderr)
        self.bar = None
        if not quiet and self.console.is_terminal:
            self.bar = _TwoLines(
                BarColumn(20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("·"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
                speed_estimate_period=_SPEED_WINDOW,
            )
            self.task = self.bar.add_task("", total=total, completed=completed)

    def __enter__(self) -> "ProgressBar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def advance_to(self, step: int) -> None:
        """Move the bar. When piped, say once how long it will take, after a few steps."""
        if self.bar:
            self.bar.update(self.task, completed=step)
        elif step == self.completed + _FIRST_STEPS and self._seconds_left(step) > 60:
            self.print(f"about {self._left(step)}, by the first {_FIRST_STEPS} steps")

    def update(self, step: int, status: str) -> None:
        """Move the bar and show `status` below it; when piped, print both on one line."""
        if self.bar:
            self.bar.status = status
            self.bar.update(self.task, completed=step)
        elif not self.quiet:
            clock = time.strftime("%H:%M:%S")
            line = f"{clock}  step {step}/{self.total}  {status}  {self._left(step)}"
            print(line, file=sys.stderr, flush=True)

    def standing(self, on: str) -> None:
        """What goes on while the bar stands still; nothing when piped."""
        if self.bar:
            self.bar.status = on
            self.bar.refresh()

    def show(self, done: int | float, status: str) -> None:
        """Move the bar, also by part of a step, with `status` below it.

        When piped, print the status, at most once a minute.
        """
        if self.bar:
            self.bar.status = status
            self.bar.update(self.task, completed=done)
        elif time.monotonic() > self.shown + _PIPED_EVERY:
            self.shown = time.monotonic()
            self.print(status)

    def _seconds_left(self, step: int) -> float:
        """At the mean speed so far."""
        done = max(1, step - self.completed)
        return (time.monotonic() - self.began) / done * (self.total - step)

    def _left(self, step: int) -> str:
        return f"{timedelta(seconds=round(self._seconds_left(step)))} left"

    def print(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def scan_bars(quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Shows scans of data: gives a function to call with (items done, items in all).

    Every scan has a `ProgressBar` of its own. It ends with its last item, or with the block.

    >>> with scan_bars(quiet=True) as show:
    ...     show(1, 2)
    """
    with ExitStack() as stack:
        bars: list[ProgressBar] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(ProgressBar(total, 0, quiet)))
                bars[0].print(f"reading {total} items")
            bars[0].advance_to(done)
            if done == total:
                stack.close()
                bars.clear()

        yield show


def _standard_output(piped_width: int) -> Console:
    """Of the terminal's width, or of this one. Names that are not UTF-8 are escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(width=None if sys.stdout.isatty() else piped_width)


def print_paragraph(text: str) -> None:
    """A paragraph on standard output, wrapped between words."""
    _standard_output(_PIPED_WIDTH).print(text, highlight=False, markup=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output, the first column to the left, the others to the right.

    Where a terminal is too narrow, vertical lines go first; then heads, names and `± error` fold.
    """
    console = _standard_output(10_000)
    # A table's own title would wrap at the table's width.
    console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(_table(columns, rows, console.width))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> RenderableType:
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows)]
    narrow = sum(widths) + 3 * len(widths) + 1 > room
    if narrow:
        rows = [[cell.replace(" ± ", "\n± ") for cell in row] for row in rows]
        widths = _fold(columns, rows, room - len(columns) + 1)
    table = Table(
        box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD,
        padding=(0, 0 if narrow else 1),
        show_edge=not narrow,
    )
    for index, (column, width) in enumerate(zip(columns, widths)):
        # Text, not markup: a name may hold square brackets.
        table.add_column(Text(column), justify="right" if index else "left", width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _fold(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths that fit `room` where words allow it: the widest column gives way first.

    Heads and the first column, which holds names, break between words; figures do not.
    """
    widths = []
    least = []
    for index, (head, *cells) in enumerate(zip(columns, *rows)):
        lines = [line for cell in cells for line in cell.split("\n")]
        widths.append(max(map(cell_len, [head, *lines])))
        whole = head.split() + [word for line in lines for word in line.split()] * (index == 0)
        least.append(max(map(cell_len, whole + lines * (index > 0))))
    while sum(widths) > room and widths != least:
        foldable = [index for index in range(len(widths)) if widths[index] > least[index]]
        widths[max(foldable, key=lambda index: widths[index])] -= 1
    return widths
