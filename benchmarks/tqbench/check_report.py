"""Checks on the terminal, as Markdown and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import STATUSES, Check
from .errors import BenchError
from .report import page, save_report

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["check_markdown", "check_page", "print_checks", "read_checks", "write_check_report"]

_HEAD = ("check", "ours", "theory", "paper", "review", "threshold", "status", "note")
_TERMINAL = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "dim"}
_HTML = {"PASS": "#0a7a2f", "WARN": "#a86500", "FAIL": "#c0182b", "SKIP": "#6a7077"}


def read_checks(record: dict[str, Any]) -> list[Check]:
    """The checks of a record."""
    return [Check(**row) for row in record["checks"]]


def write_check_report(
    record: dict[str, Any],
    folder: str | Path,
    name: str,
    title: str,
    measured: str,
    draw: Callable[[dict[str, Any]], bytes],
) -> tuple[Path, Path, Path]:
    """Write NAME.md, NAME.png and NAME.html into `folder` and return their paths.

    Raises
    ------
    BenchError
        When matplotlib is not installed or the folder cannot be written.
    """
    try:
        picture = draw(record)
    except ImportError as error:
        raise BenchError(f"the report needs {error.name}: pip install 'tqann[bench]'") from error
    png, html = save_report(folder, name, picture, check_page(record, title, measured, picture))
    markdown = png.with_suffix(".md")
    try:
        markdown.write_text(check_markdown(record, title, measured, png.name), encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write to {folder}: {error.strerror}") from error
    return markdown, png, html


def check_markdown(
    record: dict[str, Any], title: str, measured: str, picture: str, *, before: str = ""
) -> str:
    """The report as Markdown; `picture` is the file name of the PNG beside it, `before` comes above the checks."""
    lines = [f"# {title}", "", measured, "", f"**{_summary(record)}**", "", f"![{title}]({picture})"]
    lines += ["", before] if before else []
    for group, checks in _groups(record).items():
        lines += ["", f"## {group}", "", f"| {' | '.join(_HEAD)} |", "|---|" + "--:|" * 4 + "---|" * 3]
        lines += [
            "| " + " | ".join(text.replace("|", "\\|") for text in _cells(check)) + " |" for check in checks
        ]
    machine = record["machine"]
    lines += [
        "",
        f"{machine['cpu']}, {machine['cores']} cores; commit {record['commit']}; {record['created']}",
    ]
    return "\n".join([*lines, "", f"`{record['command']}`", ""])


def check_page(
    record: dict[str, Any], title: str, measured: str, picture: bytes, *, before: str = "", after: str = ""
) -> str:
    """The report as an HTML page that loads nothing; `before` and `after` are HTML around the checks."""
    head = "".join(
        f"<th>{text}</th>" if text in ("ours", "theory") else f'<th style="text-align:left">{text}</th>'
        for text in _HEAD
    )
    body = f"<p><b>{escape(_summary(record))}</b></p>{before}"
    for group, checks in _groups(record).items():
        rows = "".join(_html_row(check) for check in checks)
        body += f'<h2>{escape(group)}</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    return page(record, title, measured, picture, title, body + after)


def print_checks(record: dict[str, Any], console: Console) -> None:
    """Print one table a group and the number of checks of every status."""
    from rich.markup import escape as plain
    from rich.table import Table

    for group, checks in _groups(record).items():
        table = Table(title=plain(group), title_justify="left", title_style="bold", pad_edge=False)
        for heading in _HEAD:
            table.add_column(heading, justify="right" if heading in _HEAD[1:5] else "left", overflow="fold")
        for check in checks:
            *cells, status, note = (plain(text) for text in _cells(check))
            table.add_row(*cells, f"[{_TERMINAL[check.status]}]{status}[/]", note)
        console.print(table)
    console.print(_summary(record), highlight=False)


def _groups(record: dict[str, Any]) -> dict[str, list[Check]]:
    groups: dict[str, list[Check]] = {}
    for check in read_checks(record):
        groups.setdefault(check.group, []).append(check)
    return groups


def _summary(record: dict[str, Any]) -> str:
    return ", ".join(f"{record['counts'][status]} {status}" for status in STATUSES)


def _cells(check: Check) -> tuple[str, ...]:
    numbers = ("" if number is None else f"{number:.5g}" for number in (check.value, check.theory))
    return (check.name, *numbers, check.paper, check.review, check.threshold, check.status, check.reason)


def _html_row(check: Check) -> str:
    name, *numbers, paper, review, threshold, status, note = (escape(text) for text in _cells(check))
    wrapped = 'style="white-space:normal;text-align:left"'  # wide texts must not push the status out of sight
    cells = [f"<td {wrapped}>{name}</td>", *(f"<td>{text}</td>" for text in numbers)]
    cells += [f"<td {wrapped}>{text}</td>" for text in (paper, review, threshold)]
    cells.append(f'<td style="color:{_HTML[check.status]};font-weight:700">{status}</td>')
    return f"<tr>{''.join(cells)}<td {wrapped}>{note}</td></tr>"
