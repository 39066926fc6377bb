"""The picture and the page of LongBench: scores with intervals, bars of caches side by side."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path
from typing import Any

from ...errors import BenchError
from ...report import page, save_report
from .scores import FULL

__all__ = ["COLUMNS", "cells", "draw_scores", "write_longbench_page"]

COLUMNS = (
    "task",
    "length",
    "metric",
    "cache",
    "bits",
    "n",
    "score",
    "95%",
    "to full",
    "95%",
    "same",
    "cut",
    "packed",
)
"""Headings of `cells`."""


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the record as texts."""
    packed = row["cache"] != FULL
    return [
        row["task"],
        row["bucket"] or "all",
        row["metric"].replace("_", " "),
        row["cache"],
        f"{row['effective_bits']:.2f}" if row["effective_bits"] else "",
        str(row["n"]),
        f"{row['score']:.2f}",
        _span(row["low"], row["high"]),
        f"{row['difference']:+.2f}" if packed else "",
        _span(row["difference_low"], row["difference_high"]) if packed else "",
        str(row["same"]) if packed and row["same"] is not None else "",
        str(row["cut"]),
        str(row["packed"]) if packed else "",
    ]


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{low:.2f} to {high:.2f}"


def write_longbench_page(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html; BenchError when matplotlib is not installed or the folder cannot be written."""
    buffer = io.BytesIO()
    try:
        draw_scores(record).savefig(buffer, format="png", dpi=110)
    except ImportError as error:
        raise BenchError(f"the report needs {error.name}: pip install 'tqann[bench]'") from error
    settings = record["settings"]
    template = "with" if settings["chat"] else "without"
    measured = (
        f"{record['dataset']['description']}; {settings['kind']}'s prompts, answer lengths and metrics; prompts cut in "
        f"the middle to {settings['max_length']:,} tokens, {template} chat template, greedy answers. The context lies "
        f"in the cache before the rest of the prompt is asked; {settings['sink_tokens']} first and "
        f"{settings['recent_tokens']} last tokens are in full precision, everything else is codes."
    )
    head = "".join(f"<th>{escape(heading)}</th>" for heading in COLUMNS)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells(row)) + "</tr>"
        for row in record["results"]
    )
    note = (
        "Intervals are percentile bootstrap intervals over examples (2,000 resamples), those of differences over the "
        "same examples; a single example has none. Same: answers equal to those in full precision. Cut: prompts that "
        "lost their middle. Packed: contexts longer than the window."
    )
    body = f'<div class="scroll"><table><tr>{head}</tr>{lines}</table></div><p class="soft">{note}</p>'
    title = f"{settings['kind']}: {record['dataset']['name']}"
    html = page(record, title, measured, buffer.getvalue(), "Scores of tasks and caches", body)
    return save_report(folder, name, buffer.getvalue(), html)


def draw_scores(record: dict[str, Any]):
    """A matplotlib Figure: a panel for each length, bars of the caches for each task."""
    from matplotlib.figure import Figure

    rows = record["results"]
    buckets = list(dict.fromkeys(row["bucket"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    known = {(row["bucket"], row["task"], row["cache"]): row for row in rows}
    figure = Figure(figsize=(2.5 + 0.9 * len(tasks), 0.8 + 2.8 * len(buckets)), layout="constrained")
    panels = figure.subplots(len(buckets), 1, squeeze=False, sharex=True)[:, 0]
    width = 0.8 / len(caches)
    for axes, bucket in zip(panels, buckets, strict=True):
        for number, cache in enumerate(caches):
            for place, task in enumerate(tasks):
                row = known.get((bucket, task, cache))
                if row is None:
                    continue
                x = place + (number - (len(caches) - 1) / 2) * width
                axes.bar(x, row["score"], width, color=f"C{number}", label=cache if place == 0 else None)
                if row["low"] is not None:
                    axes.plot([x, x], [row["low"], row["high"]], color="black", linewidth=1)
        axes.set_title("all lengths" if bucket is None else bucket, fontsize=9)
        axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize=8)
        axes.set_ylabel("score", fontsize=8)
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{record['settings']['kind']}, {record['dataset']['description']}", fontsize=10)
    return figure
