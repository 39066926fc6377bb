"""Pictures of a record of `tq bench all`: an overview, and those of its parts."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["overview_png", "part_pictures"]

_COLOURS = {"chain": "#0b5fd6", "calibrated": "#0a7a2f", "mse": "#d1600a", "pq": "#8a4fbf", "full": "#444444"}
_PALETTE = 256  # colours: enough for plots, and a third of the size


def overview_png(record: dict[str, Any]) -> bytes:
    """One panel for every part that has one, as PNG."""
    from matplotlib.figure import Figure

    panels = [(part, _PANELS[part]) for part in _PANELS if part in record["parts"]]
    figure = Figure(figsize=(max(5.0, 4.6 * len(panels)), 4.4), layout="constrained")
    if not panels:
        figure.text(0.5, 0.5, "no part of this run has a picture", ha="center")
        return _png(figure)
    for axes, (part, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, record["parts"][part])
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        columns = 1 if len(axes.get_legend_handles_labels()[0]) < 5 else 3
        axes.legend(fontsize=8, frameon=False, ncols=columns)
    return _png(figure)


def part_pictures(record: dict[str, Any]) -> dict[str, bytes]:
    """The picture that every part's own command draws, by title."""
    from ..kv.registry import SUITES, load_suite
    from ..paper.page import paper_png
    from ..plots import png_bytes

    pictures = {}
    for name, part in record["parts"].items():
        if name == "theory":
            pictures["theory"] = _small(paper_png(part))
        elif name == "ann":
            for source, made in part["records"].items():
                pictures[f"index: {source}"] = _small(png_bytes(made))
        elif name in SUITES and not part["suite"].startswith("all-"):
            with tempfile.TemporaryDirectory() as folder:
                load_suite(name).write_page(part, folder, name)
                drawn = sorted(Path(folder).glob("*.png"))
                for path in drawn:
                    title = name if len(drawn) == 1 else path.stem.replace("-", " ")
                    pictures[title] = _small(path.read_bytes())
    return pictures


def _theory(axes: Any, record: dict[str, Any]) -> None:
    from ..paper.theory import BITS, PAPER_DISTORTION, shannon

    for name in ("mse", "chain"):
        axes.plot(BITS, record["curves"][name]["distortion"], "o-", color=_COLOURS[name], label=name)
    axes.plot(BITS, [float(PAPER_DISTORTION[b]) for b in BITS], "kx", label="printed in the paper")
    axes.plot(BITS, [shannon(b) for b in BITS], ":", color="#777777", label="Shannon")
    axes.set_yscale("log")
    axes.set_xticks(BITS)
    axes.set_xlabel("bits per dimension")
    axes.set_title("Distortion of a unit vector", fontsize=10)


def _needle(axes: Any, record: dict[str, Any]) -> None:
    rows = [row for row in record["results"] if row["depth"] is None]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    caches = sorted({row["cache"] for row in rows}, key=lambda name: (name != "full", name))
    width = 0.8 / len(caches)
    for number, cache in enumerate(caches):
        shares = []
        for task in tasks:
            own = [row for row in rows if (row["cache"], row["task"]) == (cache, task)]
            shares.append(sum(row["right"] for row in own) / max(1, sum(row["n"] for row in own)))
        places = [place + (number - (len(caches) - 1) / 2) * width for place in range(len(tasks))]
        code, _, bits = cache.partition("-")
        alpha = 1.0 if not bits or float(bits) >= 3 else 0.55
        axes.bar(places, shares, width, label=cache, color=_COLOURS.get(code, "#777777"), alpha=alpha)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=8)
    axes.set_ylim(0, 1.3)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_title("Needles: exact match", fontsize=10)


def _ann(axes: Any, record: dict[str, Any]) -> None:
    made = record["records"].get("sample-lm") or next(iter(record["records"].values()))
    k = made["settings"]["k"]
    for method in ("calibrated", "chain", "pq", "mse"):
        rows = [r for r in made["results"] if r["method"] == method and r["status"] == "ok"]
        if rows:
            rows.sort(key=lambda r: r["bytes_per_vector"])
            axes.plot(
                [r["bytes_per_vector"] for r in rows],
                [r[f"recall_{k}_at_{k}"] for r in rows],
                "o-",
                color=_COLOURS[method],
                label=rows[0]["label"],
            )
    axes.set_xlabel("bytes per vector")
    axes.set_title(f"Recall {k}@{k}: {made['dataset']['name']}", fontsize=10)


def _divergence(axes: Any, record: dict[str, Any]) -> None:
    for code, label in (("mse", "mse (paper)"), ("chain", "chain")):
        rows = [row for row in record["results"] if row["code"] == code]
        axes.plot(
            [row["bits"] for row in rows],
            [row["divergence"] for row in rows],
            "o-",
            color=_COLOURS[code],
            label=label,
        )
    axes.set_yscale("log")
    axes.set_xlabel("bits per dimension, scales apart")
    axes.set_title("Divergence of the logits, nats", fontsize=10)


_PANELS = {"theory": _theory, "needle": _needle, "distortion": _divergence, "ann": _ann}


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return _small(buffer.getvalue())


def _small(png: bytes) -> bytes:
    """The same picture with a palette, at most 1,600 pixels wide."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > 1600:
        image = image.resize((1600, round(image.height * 1600 / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(_PALETTE, method=Image.Quantize.MAXCOVERAGE).save(buffer, format="PNG", optimize=True)
    return min(buffer.getvalue(), png, key=len)
