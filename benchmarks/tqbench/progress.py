"""Progress on standard error, so that standard output stays clean for `--json`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["progress_bar", "track"]

T = TypeVar("T")


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator:
    """A rich Progress on standard error; drawn only on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[detail]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        yield bar


def track(sequence: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `sequence` with a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, detail="")
        for item in sequence:
            yield item
            bar.advance(task)
