"""Where commands print: nothing that comes from records, files or models steers the terminal.

`guarded` cleans standard output and error, for prints, logs and warnings, also those of libraries. The escape
sequences of tables and progress bars pass it: `console` cleans what they show. `rewrite_line` is for the
one line that is printed over itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from absl import logging
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn
from rich.segment import Segment
from rich.table import Table

from o3jax.printing import printable

_LINES = "\n\t"


class _Guarded(io.TextIOBase):
    """A stream that hands printable text on to another."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        shown, encoding = printable(text, keep=_LINES), self.stream.encoding or "utf-8"
        self.stream.write(shown.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return self.stream.encoding

    @property
    def buffer(self) -> Any:
        return self.stream.buffer


class _Console(Console):
    """A console that shows printable text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text, keep=_LINES)
            yield Segment(text, segment.style, segment.control)

    def on_broken_pipe(self) -> None:
        """Prints no more, and goes on: `| head` has seen enough, and results are still to be written."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Cleans what is printed in the block, also by absl's log."""
    log = logging.get_absl_handler().python_handler
    before = sys.stdout, sys.stderr, log.stream
    sys.stdout, sys.stderr = (stream and _Guarded(stream) for stream in before[:2])
    log.stream = sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr, log.stream = before


def console(*, stderr: bool = False, **options: Any) -> Console:
    """Returns a console of rich.

    Args:
        options: of `rich.console.Console`.
    """
    return _Console(file=_behind(sys.stderr if stderr else sys.stdout), **options)


def progress(*columns: ProgressColumn) -> Progress:
    """Returns rich's bar on stderr, which goes when its block ends; without columns rich's own."""
    return Progress(*columns, console=console(stderr=True, soft_wrap=True, highlight=False), transient=True)


def print_table(table: Table) -> None:
    """Prints a table as wide as its longest words need: a narrow terminal wraps lines, never words."""
    shown = console()
    for column in table.columns:
        words = " ".join(map(str, [column.header, *column.cells])).split()
        column.min_width = max(map(cell_len, words), default=1)
    needed = Measurement.get(shown, shown.options.update(max_width=10_000), table).minimum
    shown.width = max(shown.width, needed)
    shown.print(table, crop=False)


def rewrite_line(text: str, *, last: bool) -> None:
    """Prints a line over the one that was printed so before.

    Args:
        last: nothing will be printed over this one.
    """
    out, columns = _behind(sys.stdout), os.get_terminal_size().columns - 1
    out.write("\r" + printable(text)[:columns].ljust(columns) + "\n" * last)
    out.flush()


def _behind(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, _Guarded) else stream
