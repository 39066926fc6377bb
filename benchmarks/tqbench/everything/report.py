"""The report of `tq bench all`: Markdown, PNG and one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..check_report import check_markdown, check_page
from ..errors import BenchError
from ..report import save_report
from .verdicts import claim_rows, reviewed_rows

__all__ = [
    "CLAIM_TABLES",
    "claims_markdown",
    "describe",
    "reviewed_markdown",
    "verdicts_markdown",
    "write_all_report",
]

_CLAIM_HEADS = ("source", "claim", "printed", "verdict", "ours", "note")
_REVIEWED_HEADS = ("number", "check", "review", "ours", "status", "checks")
_SHORT_HEADS = ("verdict", "claim", "printed", "ours", "note")
_TITLES = {
    "claims": "Claims of the paper (arXiv 2504.19874) and of the public review",
    "reviewed": "The review's fourteen checks",
}
_VERDICTS = ("not reproduced", "refined", "not tested")
_DIVISION = "The review names seven groups and counts fourteen passes; their division into fourteen is ours."


def describe(record: dict[str, Any]) -> tuple[str, str]:
    """Title, and what was measured."""
    settings, steps = record["settings"], record["steps"]
    where = f" on {settings['device_name']}" if settings["device_name"] else ""
    seconds = sum(step["seconds"] for step in steps)
    how = "a quick run" if settings["quick"] else "a full run"
    names = ", ".join(step["name"] for step in steps)
    return (
        "TurboQuant: what holds",
        f"{record['dataset']['description']}{where}; {how} of {seconds / 60:.1f} minutes: {names}. "
        f"Seed {settings['seed']}. Values of the paper and of the public review are quoted as theirs; the review ran "
        "Qwen3.6-27B with simulated quantization on a GPU of 96 GB.",
    )


def write_all_report(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path, Path]:
    """Write NAME.md, NAME.png and NAME.html into `folder` and return their paths.

    Raises
    ------
    BenchError
        When matplotlib is not installed or the folder cannot be written.
    """
    try:
        from .pictures import overview_png, part_pictures

        picture, parts = overview_png(record), part_pictures(record)
    except ImportError as error:
        raise BenchError(f"the report needs {error.name}: pip install 'tqann[bench]'") from error
    title, measured = describe(record)
    before = _tables(record)
    after = "".join(_figure(name, png) for name, png in parts.items())
    html = check_page(record, title, measured, picture, before=before, after=after)
    png, page = save_report(folder, name, picture, html)
    markdown = png.with_suffix(".md")
    text = check_markdown(record, title, measured, png.name, before=_markdown(record))
    try:
        markdown.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write to {folder}: {error.strerror}") from error
    return markdown, png, page


def claims_markdown(record: dict[str, Any]) -> str:
    """The claims as a Markdown table, and what it was made of."""
    return f"{_claims(record)}\n\n{_origin(record)}"


def reviewed_markdown(record: dict[str, Any]) -> str:
    """The review's checks as a Markdown table, and what it was made of."""
    return f"{_reviewed(record)}\n\n{_DIVISION} {_origin(record)}"


def verdicts_markdown(record: dict[str, Any]) -> str:
    """In short: the claims that are reproduced in a sentence, the others as a table, and what it was made of."""
    rows = claim_rows(record)
    held = [f"{row['claim']} ({row['source']})" for row in rows if row["verdict"] == "reproduced"]
    others = [
        row | {"claim": f"{row['source']}: {row['claim']}"} for row in rows if row["verdict"] != "reproduced"
    ]
    others.sort(key=lambda row: _VERDICTS.index(row["verdict"]))
    table = _lines(_SHORT_HEADS, others, "verdict")
    return f"**Reproduced**, {len(held)} of {len(rows)}: {'; '.join(held)}.\n\n{table}\n\n{_origin(record)}"


def _markdown(record: dict[str, Any]) -> str:
    return (
        f"## {_TITLES['claims']}\n\n{_claims(record)}\n\n"
        f"## {_TITLES['reviewed']}\n\n{_DIVISION}\n\n{_reviewed(record)}"
    )


def _claims(record: dict[str, Any]) -> str:
    return _lines(_CLAIM_HEADS, claim_rows(record), "verdict")


def _reviewed(record: dict[str, Any]) -> str:
    return _lines(_REVIEWED_HEADS, reviewed_rows(record), "status")


def _origin(record: dict[str, Any]) -> str:
    machine, found = record["machine"], record["counts"]
    device = record["settings"]["device_name"] or f"{machine['cpu']}, {machine['cores']} cores"
    statuses = ", ".join(f"{number} {status}" for status, number in found.items())
    return f"{record['dataset']['description']}; {device}; {statuses}; {record['created'][:10]}; `{record['command']}`."


def _lines(heads: Sequence[str], rows: list[dict[str, str]], bold: str) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (f"**{row[head]}**" if head == bold else row[head] for head in heads)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _tables(record: dict[str, Any]) -> str:
    claims = _html(_TITLES["claims"], _CLAIM_HEADS, claim_rows(record))
    reviewed = _html(_TITLES["reviewed"], _REVIEWED_HEADS, reviewed_rows(record), _DIVISION)
    steps = [
        {"step": s["name"], "seconds": f"{s['seconds']:.1f}", "kept": "from before" if s["kept"] else ""}
        for s in record["steps"]
    ]
    return claims + reviewed + _html("Steps", ("step", "seconds", "kept"), steps)


def _html(title: str, heads: Sequence[str], rows: list[dict[str, str]], words: str = "") -> str:
    head = "".join(f'<th style="text-align:left">{escape(text)}</th>' for text in heads)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_WRAP}">{escape(row[head])}</td>' for head in heads) + "</tr>"
        for row in rows
    )
    said = f"<p>{escape(words)}</p>" if words else ""
    return f'<h2>{escape(title)}</h2>{said}<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


# kind of a table of `tqbench.tables` -> how it is made of a record of `tq bench all`
CLAIM_TABLES = {"claims": claims_markdown, "reviewed": reviewed_markdown, "verdicts": verdicts_markdown}
_WRAP = "white-space:normal;text-align:left"


def _figure(title: str, png: bytes) -> str:
    encoded = base64.b64encode(png).decode()
    return f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="data:image/png;base64,{encoded}">'
