"""What a person sees while work goes on: a progress bar on a terminal, plain lines when the output is piped."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Steps:
    """Progress over `total` steps; `show(step, text)` moves the bar, and prints a line every so often when piped.

    Silent when `quiet`, as all processes but the first are.
    """

    def __init__(self, total: int, done: int, quiet: bool):
        self.total, self.quiet, self.console = total, quiet, Console(file=sys.stderr)
        self.bar = None
        if not quiet and self.console.is_terminal:
            columns = (BarColumn(30), TextColumn("{task.completed}/{task.total}"), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "Steps":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, step: int, text: str) -> None:
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        elif not self.quiet:
            print(f"{time.strftime('%H:%M:%S')}  step {step}/{self.total}  {text}", file=sys.stderr, flush=True)

    def move(self, step: int) -> None:
        """Move the bar, say nothing."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; plain and untruncated when piped."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    shown = Table()
    for column in columns:
        shown.add_column(Text(column), justify="left" if column == columns[0] else "right")
    for row in rows:
        shown.add_row(*map(Text, row))  # as it is: a system's name may hold square brackets
    console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)  # a table's own title wraps at the table's width
    console.print(shown)
