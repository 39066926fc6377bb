"""One self-contained HTML page of a speed record."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from ..errors import BenchError
from ..records import record_name
from ..report import page, save_report
from .tables import (
    Table,
    cell_tables,
    group_table,
    limit_table,
    match_summary_table,
    match_table,
    origin,
    summary_table,
    update_table,
)

__all__ = ["speed_page", "write_speed_report"]


def write_speed_report(
    record: dict[str, Any], folder: str | Path, name: str | None = None
) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html into `folder` and return their paths.

    Raises
    ------
    BenchError
        When matplotlib is not installed or the folder cannot be written.
    """
    try:
        from .picture import speed_png

        picture = speed_png(record)
    except ImportError as error:
        raise BenchError(f"the report needs {error.name}: pip install 'tqann[bench]'") from error
    return save_report(folder, name or record_name(record), picture, speed_page(record, picture))


def speed_page(record: dict[str, Any], picture: bytes) -> str:
    """The whole page; it loads nothing."""
    tables = [
        summary_table(record),
        match_summary_table(record),
        match_table(record),
        limit_table(record),
        update_table(record),
        *cell_tables(record),
    ]
    tables += [group_table(group) for group in record["results"]]
    body = "".join(_html(table) for table in tables if table is not None)
    note = (
        "Ratios are our queries/s in those of the fastest rival of the same cell, all methods measured in turn in one "
        "run. Recall is 10@10. All are full scans, "
        "unless a rival's own default is staged. The instruction limit counts those of the scan's inner loop."
    )
    return page(
        record,
        "Search speed of tqann against its rivals",
        origin(record),
        picture,
        "Ratio of queries per second, a dot a cell",
        f'{body}<p class="soft">{escape(note)}</p>',
    )


def _html(table: Table) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in table.head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in table.rows
    )
    title = escape(table.title)
    return f'<h2>{title}</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
