"""PNG and one self-contained HTML page of a record."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from .display import COLUMNS, group_rows
from .errors import BenchError
from .records import record_name
from .standing import standings

__all__ = ["html_page", "page", "save_report", "write_report"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #fff; --line: #d5d9de; --soft: #6a7077;
 --ours: #eaf2ff; --best: #0a7a2f; }
@media (prefers-color-scheme: dark) {
 :root { --ink: #e6e8ea; --paper: #16181b; --line: #3a3f45; --soft: #9aa1a9; --ours: #182a45;
 --best: #56d07f; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
 max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
img { width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.ours { background: var(--ours); font-weight: 600; }
tr.skipped td { color: var(--soft); white-space: normal; }
td.best { color: var(--best); font-weight: 700; }
p.soft, footer { color: var(--soft); }
code { overflow-wrap: anywhere; }
"""


def write_report(record: dict[str, Any], folder: str | Path, name: str | None = None) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html into `folder` and return their paths.

    Raises
    ------
    BenchError
        When matplotlib is not installed or the folder cannot be written.
    """
    try:
        from .plots import png_bytes

        picture = png_bytes(record)
    except ImportError as error:
        raise BenchError(f"the report needs {error.name}: pip install 'tqann[bench]'") from error
    return save_report(folder, name or record_name(record), picture, html_page(record, picture))


def save_report(folder: str | Path, name: str, picture: bytes, html: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html; BenchError when the folder cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        png, html_file = folder / f"{name}.png", folder / f"{name}.html"
        png.write_bytes(picture)
        html_file.write_text(html, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write to {folder}: {error.strerror}") from error
    return png, html_file


def html_page(record: dict[str, Any], picture: bytes) -> str:
    """The whole page; it loads nothing."""
    data, settings = record["dataset"], record["settings"]
    lines = "".join(f"<li>{escape(line)}</li>" for line in standings(record))
    tables = "".join(_table(record, bits, rows) for bits, rows in group_rows(record).items())
    mean = f"squared mean of the unit vectors {data['squared_mean']:.3f}"
    measured = (
        f"{data['description']}: {data['n']:,} x {data['d']}, {data['nq']:,} queries, "
        f"metric {data['metric']}, {mean}. k = {settings['k']}, "
        f"{settings['threads']} threads, median of {settings['repeats']} interleaved repeats."
    )
    return page(
        record,
        f"tqann against its rivals on {data['name']}",
        measured,
        picture,
        "Recall against bytes, recall against queries per second, and build time",
        f"""<h2>Where tqann stands</h2><ul>{lines}</ul>
{tables}
<p class="soft">B/vec counts code, per-vector scalars and stored ids; resident is the growth of a fresh
process, tables of fixed size included, divided by the vectors. One query (1q) is timed at one thread.
Green is the best of its table.</p>""",
    )


def page(
    record: dict[str, Any], title: str, measured: str, picture: bytes, picture_says: str, body: str
) -> str:
    """A page with a title, what was measured, a PNG, a body of HTML, and what the record was measured on."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    encoded = base64.b64encode(picture).decode()
    kernels = f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])})"
    system = f"{machine['memory_gib']} GiB, {machine['os']}, Python {machine['python']}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{escape(measured)}</p>
<img alt="{escape(picture_says)}"
 src="data:image/png;base64,{encoded}">
{body}
<footer><h2>Measured on</h2>
<p>{escape(kernels)}, {escape(system)}; {escape(versions)}; commit {escape(str(record["commit"]))};
{escape(record["created"])}</p><p><code>{escape(record["command"])}</code></p></footer>
</body></html>
"""


def _table(record: dict[str, Any], bits: float, rows: list[dict[str, Any]]) -> str:
    k, t = record["settings"]["k"], record["settings"]["threads"]
    columns = [
        (key.format(k=k), heading.format(k=k, t=t), decimals, largest)
        for key, heading, decimals, largest, _ in COLUMNS
    ]
    columns.insert(1, ("resident_bytes_per_vector", "resident", 0, False))
    measured = [row for row in rows if row["status"] == "ok"]
    best = {}
    for key, _, _, largest in columns:
        values = [row[key] for row in measured if row[key] is not None]
        if len(values) > 1:
            best[key] = max(values) if largest else min(values)
    head = "".join(f"<th>{escape(heading)}</th>" for _, heading, *_ in columns)
    body = "".join(_row(row, columns, best) for row in rows)
    title = "Exact" if bits >= 32 else f"{bits:g} bits per dimension"
    return f'<h2>{title}</h2><div class="scroll"><table><tr><th>method</th>{head}</tr>{body}</table></div>'


def _row(row: dict[str, Any], columns: list[tuple[str, str, int, bool]], best: dict[str, float]) -> str:
    label = escape(row["label"])
    if row["status"] != "ok":
        text = f"{label}: skipped, {escape(row['reason'])}"
        return f'<tr class="skipped"><td colspan="{len(columns) + 1}">{text}</td></tr>'
    cells = []
    for key, _, decimals, _ in columns:
        value = row[key]
        text = "" if value is None else f"{value:,.{decimals}f}"
        cells.append(
            f'<td class="best">{text}</td>'
            if value is not None and best.get(key) == value
            else f"<td>{text}</td>"
        )
    kind = ' class="ours"' if row["family"] == "tqann" else ""
    return f"<tr{kind}><td>{label}</td>{''.join(cells)}</tr>"
