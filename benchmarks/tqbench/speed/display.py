"""A speed record on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tables import (
    Table,
    cell_tables,
    limit_table,
    match_summary_table,
    match_table,
    origin,
    summary_table,
    update_table,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_speed"]


def print_speed(record: dict[str, Any], console: Console) -> None:
    """Print every cell, what was skipped, the limits, the updates and, last, the medians."""
    from rich.markup import escape

    for table in cell_tables(record):
        _print(table, console)
    for reason in dict.fromkeys(_skipped(record)):
        console.print(f"[dim]skipped: {escape(reason)}[/]", highlight=False)
    _print(limit_table(record), console)
    updates = update_table(record)
    if updates is not None:
        _print(updates, console)
    _print(match_table(record), console)
    _print(match_summary_table(record), console)
    _print(summary_table(record), console)
    console.print(f"[dim]{escape(origin(record))}[/]", highlight=False)


def _skipped(record: dict[str, Any]) -> list[str]:
    rows = [row for group in record["results"] for row in group["methods"] if row["status"] != "ok"]
    return [f"{row['label']}, {row['reason']}" for row in rows]


def _print(table: Table, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(title=escape(table.title), title_justify="left", title_style="bold", pad_edge=False)
    for place, heading in enumerate(table.head):
        shown.add_column(heading, justify="left" if place < table.left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(escape(text) for text in row))
    console.print(shown)
