"""The picture of a speed record: our ratio to the rivals in every cell."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ..metrics import median
from .standing import Standing, standings

__all__ = ["draw_speed", "speed_png"]

_COLOURS = {
    "chain": "#0b5fd6",
    "chain-unit": "#35a0e8",
    "layered": "#7a3fb0",
    "calibrated": "#0a7a2f",
}


def speed_png(record: dict[str, Any]) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    draw_speed(record).savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def draw_speed(record: dict[str, Any]):
    """A matplotlib Figure: ratios to the fastest rival, and to the fastest of equal recall."""
    from matplotlib.figure import Figure

    found = standings(record)
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    figure.suptitle(f"Queries/s of tqann in those of the fastest rival; {record['machine']['cpu']}")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, "Fastest rival, whatever its recall", [(s, s.ratio) for s in found])
    equal = [(s, s.equal_ratio) for s in found if s.equal_ratio is not None]
    _panel(right, "Fastest rival whose recall is at least ours less 0.5 points", equal)
    left.set_ylabel("ratio (above 1 tqann is faster)")
    if found:
        left.legend(fontsize=8, frameon=False)
    return figure


def _panel(axes: Any, title: str, found: list[tuple[Standing, float]]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    places = sorted({(s.nq, s.threads) for s, _ in found})
    methods = [name for name in _COLOURS if any(s.method == name for s, _ in found)]
    rng = np.random.default_rng(0)
    for number, name in enumerate(methods):
        shift = (number - (len(methods) - 1) / 2) * 0.8 / max(1, len(methods))
        own = [(places.index((s.nq, s.threads)) + shift, ratio) for s, ratio in found if s.method == name]
        label = next(s.label for s, _ in found if s.method == name)
        x = np.array([place for place, _ in own]) + rng.uniform(-0.05, 0.05, len(own))
        axes.scatter(x, [ratio for _, ratio in own], s=16, alpha=0.65, color=_COLOURS[name], label=label)
        for place in sorted({place for place, _ in own}):
            middle = median([ratio for at, ratio in own if at == place])
            axes.hlines(middle, place - 0.1, place + 0.1, color=_COLOURS[name], linewidth=2.5)
    axes.axhline(1, color="#444444", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(places)), [f"{nq} a call\n{threads}T" for nq, threads in places])
    axes.set_title(f"{title} (bar: median)", fontsize=10)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
