"""The picture and the words of a record of `tq bench paper`."""

from __future__ import annotations

import io
from typing import Any

from .theory import BITS, LLOYD_MAX, PAPER_DISTORTION, PAPER_PRODUCT, bound, shannon

__all__ = ["describe", "draw_paper", "paper_png"]

_COLOURS = {
    "mse": "#d1600a",
    "chain": "#0b5fd6",
    "mse + scale": "#e3a008",
    "chain + scale": "#0a7a2f",
    "prod": "#c2305f",
    "prod, orthogonal": "#8a4fbf",
}


def describe(record: dict[str, Any]) -> tuple[str, str]:
    """Title, and what was measured."""
    s = record["settings"]
    return (
        "The theory of TurboQuant, measured",
        f"{s['rotations']} rotations of {s['n']:,} random unit vectors of d = {s['d']} with {s['nq']:,} random unit "
        f"queries each, seed {s['seed']}. Values of the paper (arXiv 2504.19874) and of the public review are quoted "
        "as theirs.",
    )


def paper_png(record: dict[str, Any]) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    draw_paper(record).savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def draw_paper(record: dict[str, Any]):
    """A matplotlib Figure: distortion, slope of inner products, and their error, over the bits."""
    from matplotlib.figure import Figure

    curves = record["curves"]
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name in ("mse", "chain"):
        left.plot(BITS, curves[name]["distortion"], "o-", color=_COLOURS[name], label=name)
    left.plot(BITS, [LLOYD_MAX[b] for b in BITS], "k_", markersize=16, label="Lloyd-Max, large d")
    left.plot(BITS, [float(PAPER_DISTORTION[b]) for b in BITS], "kx", label="printed in the paper")
    left.plot(BITS, [bound(b) for b in BITS], "--", color="#777777", label="the paper's upper bound")
    left.plot(BITS, [shannon(b) for b in BITS], ":", color="#777777", label="Shannon")
    left.set_title("Distortion of a unit vector (lower is better)", fontsize=10)
    left.set_yscale("log")
    for name, colour in _COLOURS.items():
        middle.plot(BITS, curves[name]["slope"], "o-", color=colour, label=name)
    middle.axhline(1, color="#444444", linewidth=0.8)
    middle.set_title("Estimated over true inner product (1 is unbiased)", fontsize=10)
    for name in ("prod", "prod, orthogonal", "mse + scale", "chain + scale"):
        right.plot(BITS, curves[name]["variance"], "o-", color=_COLOURS[name], label=name)
    right.plot(BITS, [float(PAPER_PRODUCT[b]) for b in BITS], "kx", label="prod, printed in the paper")
    right.set_title("d times squared error of inner products (lower is better)", fontsize=10)
    right.set_yscale("log")
    for axes in (left, middle, right):
        axes.set_xlabel("bits per dimension")
        axes.set_xticks(BITS)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    return figure
