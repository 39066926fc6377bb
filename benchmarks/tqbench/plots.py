"""The picture of a record: recall against bytes, recall against speed, build time."""

from __future__ import annotations

import io
from typing import Any

from .standing import OURS

__all__ = ["draw", "png_bytes"]

# family -> colour; ours stands out, the others are told apart by hue and marker
_COLOURS = {
    "tqann": "#0b5fd6",
    "pq": "#d1600a",
    "opq": "#8c4a00",
    "pq-fs": "#e3a008",
    "scalar": "#5b7f35",
    "rabitq": "#8a4fbf",
    "turbovec": "#c2305f",
    "exact": "#444444",
}
_OTHER_OURS = "#7aaef0"
_MARKERS = "osD^vP*X<>hp"


def png_bytes(record: dict[str, Any]) -> bytes:
    """The picture as PNG."""
    figure = draw(record)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def draw(record: dict[str, Any]):
    """A matplotlib Figure with three panels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter

    k, t, data = record["settings"]["k"], record["settings"]["threads"], record["dataset"]
    recall = f"recall_{k}_at_{k}"
    methods = _by_method(record)
    figure = Figure(figsize=(15.5, 6.2), layout="constrained")
    figure.suptitle(
        f"{data['name']}: {data['n']:,} x {data['d']}, {data['metric']}, {data['nq']:,} queries; "
        f"{record['machine']['cpu']}, {t} threads"
    )
    by_bytes, by_speed, builds = figure.subplots(1, 3)
    counts: dict[str, int] = {}
    for rows in methods.values():
        family = rows[0]["family"]
        style = _style(rows[0]["method"], family, counts.setdefault(family, 0))
        counts[family] += 1
        values = [r[recall] for r in rows]
        by_speed.plot([r["qps_all_threads"] for r in rows], values, label=rows[0]["label"], **style)
        if family == "exact":
            continue  # at 32 bits a dimension it would squeeze the others into a corner
        by_bytes.plot([r["bytes_per_vector"] for r in rows], values, **style)
        seconds = [max(1e-4, r["train_seconds"] + r["add_seconds"]) for r in rows]
        builds.plot([r["bytes_per_vector"] for r in rows], seconds, **style)
    _label(by_bytes, "Recall against bytes", "bytes per vector", f"recall {k}@{k}", "upper left is better")
    _label(
        by_speed,
        "Recall against speed",
        f"queries per second, {t} threads",
        f"recall {k}@{k}",
        "upper right is better",
    )
    _label(builds, "Build time", "bytes per vector", "train + add, seconds", "lower is better")
    builds.set_yscale("log")
    for axes in (by_bytes, builds):
        axes.xaxis.set_major_locator(LogLocator(2, subs=(1, 1.5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    by_speed.xaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
    by_speed.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_speed.xaxis.set_minor_locator(NullLocator())
    if methods:
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def _by_method(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in record["results"]:
        if row["status"] == "ok":
            methods.setdefault(row["method"], []).append(row)
    return {name: sorted(rows, key=lambda r: r["bytes_per_vector"]) for name, rows in methods.items()}


def _style(method: str, family: str, index: int) -> dict[str, Any]:
    ours = method in OURS
    colour = _COLOURS.get(family, "#777777")
    return {
        "color": colour if ours or family != "tqann" else _OTHER_OURS,
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 6.5 if ours else 4.5,
        "linewidth": 2.4 if ours else 1.1,
        "linestyle": "-" if ours or index == 0 else "--" if index == 1 else ":",
        "zorder": 3 if ours else 2,
        "alpha": 1.0 if ours else 0.85,
    }


def _label(axes: Any, title: str, x: str, y: str, note: str) -> None:
    axes.set_title(f"{title} ({note})", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xscale("log")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
