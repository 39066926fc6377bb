"""What the pages of the suites have in common: a picture, tables, and the same tables on the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..report import page, save_report

__all__ = ["Sheet", "html_tables", "print_tables", "write_sheets"]

Sheet = tuple[str, Sequence[str], list[list[str]]]
"""Title, headings and lines of a table."""


def html_tables(sheets: Sequence[Sheet], notes: Sequence[str] = ()) -> str:
    """Tables under their titles, and notes as a list."""
    parts = []
    for title, heads, lines in sheets:
        head = "".join(f"<th>{escape(h)}</th>" for h in heads)
        body = "".join("<tr>" + "".join(f"<td>{escape(v)}</td>" for v in line) + "</tr>" for line in lines)
        parts.append(
            f'<h2>{escape(title)}</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        )
    return "".join(parts) + "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def write_sheets(
    record: dict[str, Any],
    folder: str | Path,
    name: str,
    title: str,
    measured: str,
    figure: Any,
    sheets: Sequence[Sheet],
    notes: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Write NAME.png of a matplotlib Figure and NAME.html; BenchError when the folder cannot be written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    html = page(record, title, measured, buffer.getvalue(), title, html_tables(sheets, notes))
    return save_report(folder, name, buffer.getvalue(), html)


def print_tables(console: Any, sheets: Sequence[Sheet], notes: Sequence[str] = ()) -> None:
    """Print the same tables and notes."""
    from rich.table import Table

    for title, heads, lines in sheets:
        table = Table(title=title)
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for note in notes:
        console.print(note, highlight=False)
