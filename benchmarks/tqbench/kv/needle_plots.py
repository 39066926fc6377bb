"""The heat map of needles: accuracy over length and depth, a panel for every task and cache."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path
from typing import Any

from ..errors import BenchError
from ..report import page, save_report
from .needle import FULL

__all__ = ["draw_needles", "write_needle_page"]


def write_needle_page(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html; BenchError when matplotlib is not installed or the folder cannot be written."""
    buffer = io.BytesIO()
    try:
        draw_needles(record).savefig(buffer, format="png", dpi=110)
    except ImportError as error:
        raise BenchError(f"the report needs {error.name}: pip install 'tqann[bench]'") from error
    settings = record["settings"]
    measured = (
        f"{record['dataset']['description']}; haystack {settings['haystack']}; greedy answers, exact match in "
        f"any order. The context lies in the cache before the question comes; {settings['sink_tokens']} first and "
        f"{settings['recent_tokens']} last tokens are in full precision, everything else is codes."
    )
    html = page(
        record,
        f"Needles in a haystack: {record['dataset']['name']}",
        measured,
        buffer.getvalue(),
        "Accuracy over length and depth",
        _tables(record),
    )
    return save_report(folder, name, buffer.getvalue(), html)


def draw_needles(record: dict[str, Any]):
    """A matplotlib Figure: one row of heat maps a task, one column a cache."""
    from matplotlib.figure import Figure

    rows = [row for row in record["results"] if row["depth"] is not None]
    tasks = _order(rows, "task")
    caches = sorted(
        _order(rows, "cache"), key=lambda name: name != FULL
    )  # what the others are compared with is first
    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    share = {(r["task"], r["cache"], r["length"], r["depth"]): r["accuracy"] for r in rows}
    figure = Figure(figsize=(2.2 + 2.3 * len(caches), 1.2 + 1.9 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(caches), squeeze=False, sharex=True, sharey=True)
    image = None
    for line, task in zip(panels, tasks, strict=True):
        for axes, cache in zip(line, caches, strict=True):
            values = [[share.get((task, cache, n, depth), float("nan")) for n in lengths] for depth in depths]
            image = axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
            for y, held in enumerate(values):
                for x, value in enumerate(held):
                    colour = "white" if abs(value - 0.5) > 0.35 else "black"  # the map is dark at its ends
                    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
            axes.set_title(f"{task}, {cache}", fontsize=9)
            axes.set_xticks(range(len(lengths)), [f"{n / 1024:g}k" for n in lengths], fontsize=8)
            axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f}%" for depth in depths], fontsize=8)
    figure.suptitle(f"Exact match in %, {record['dataset']['description']}", fontsize=10)
    figure.supxlabel("tokens", fontsize=9)
    figure.supylabel("depth", fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=panels, shrink=0.7)
    return figure


def _order(rows: list[dict[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))


def _tables(record: dict[str, Any]) -> str:
    parts = []
    for task in _order(record["results"], "task"):
        lines = []
        for row in record["results"]:
            if row["task"] != task:
                continue
            depth = "all" if row["depth"] is None else f"{100 * row['depth']:.0f}%"
            kind = ' class="ours"' if row["depth"] is None else ""
            lines.append(
                f"<tr{kind}><td>{escape(row['cache'])}</td><td>{row['length']:,}</td><td>{depth}</td>"
                f"<td>{row['right']}/{row['n']}</td><td>{row['accuracy']:.2f}</td>"
                f"<td>{row['low']:.2f} to {row['high']:.2f}</td><td>{row['recall']:.2f}</td>"
                f"<td>{row['in_codes']}/{row['n']}</td></tr>"
            )
        heads = ("cache", "tokens", "depth", "right", "exact match", "95% (Wilson)", "recall", "in codes")
        head = "".join(f"<th>{name}</th>" for name in heads)
        parts.append(
            f'<h2>{escape(task)}</h2><div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
        )
    note = "Recall is RULER's score, the share of answers said. In codes: samples whose needles lie outside the window."
    return "".join(parts) + f'<p class="soft">{note}</p>'
