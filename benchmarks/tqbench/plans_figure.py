"""The README's picture of plans, drawn from the records: `python -m tqbench.plans_figure` at the root of a checkout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .records import read_record

__all__ = ["PANELS", "draw_plans", "main"]

# title -> records whose rows are drawn together; they have the same vectors and queries
PANELS = {
    "Sentence embeddings, 100,000 x 384": ("recall-wiki-minilm", "recall-wiki-rivals"),
    "Hidden states of a language model, 2,000 x 384": ("ann-sample-lm",),
}
_STYLES: dict[str, dict[str, Any]] = {
    "calibrated": {"color": "#0a7a2f", "marker": "s", "linewidth": 2.4},
    "chain": {"color": "#0b5fd6", "marker": "o", "linewidth": 2.4},
    "opq": {"color": "#8c4a00", "marker": "v", "linestyle": "--"},
    "pq": {"color": "#d1600a", "marker": "^", "linestyle": "--"},
    "rabitq-fs": {"color": "#8a4fbf", "marker": "D", "linestyle": ":"},
    "eden": {"color": "#5b7f35", "marker": "X", "linestyle": ":"},
}


def draw_plans(results: Path):
    """A matplotlib Figure of recall against bytes, a panel for each of `PANELS`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        records = [read_record(results / f"{name}.json") for name in names]
        k = records[0]["settings"]["k"]
        rows = [row for record in records for row in record["results"] if row["status"] == "ok"]
        for method, style in _STYLES.items():
            own = sorted((r for r in rows if r["method"] == method), key=lambda r: r["bytes_per_vector"])
            if own:
                axes.plot(
                    [r["bytes_per_vector"] for r in own],
                    [r[f"recall_{k}_at_{k}"] for r in own],
                    label=own[0]["label"],
                    **style,
                )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("bytes per vector")
        axes.set_ylabel(f"recall {k}@{k}")
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def main(argv: list[str] | None = None) -> int:
    """Draw the picture into the folder of the records."""
    parser = argparse.ArgumentParser(prog="python -m tqbench.plans_figure", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    results = parser.parse_args(argv).results
    draw_plans(results).savefig(results / "plans.png", dpi=110)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
