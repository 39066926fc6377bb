"""Recall over speed on a CUDA device, as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["write_device_picture"]


def write_device_picture(record: dict[str, Any], folder: str | Path, name: str) -> Path:
    """Draw one panel a number of queries, a curve a method, and return the path of the PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    k, data = record["settings"]["k"], record["dataset"]
    done = [row for row in record["results"] if row["status"] == "ok"]
    sizes = list(done[0]["milliseconds"]) if done else []
    figure, axes = plt.subplots(1, max(1, len(sizes)), figsize=(5 * max(1, len(sizes)), 4.2), squeeze=False)
    curves = dict.fromkeys((row["label"], row["bits"] if row["probes"] else None) for row in done)
    for axis, size in zip(axes[0], sizes, strict=False):
        for number, (label, bits) in enumerate(curves):
            rows = [r for r in done if r["label"] == label and (bits is None or r["bits"] == bits)]
            speed = [int(size) / r["milliseconds"][size] * 1e3 for r in rows]
            recall = [r[f"recall_{k}_at_{k}"] for r in rows]
            text = label if bits is None else f"{label}, {rows[0]['bytes_per_vector']:.0f} B"
            axis.plot(speed, recall, "o-", color=f"C{number % 10}", markersize=4, label=text)
            if bits is None and label.startswith("tqann"):
                for x, y, row in zip(speed, recall, rows, strict=True):
                    axis.annotate(
                        f"{row['bits']:g} bits",
                        (x, y),
                        fontsize=7,
                        textcoords="offset points",
                        xytext=(4, -9),
                    )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"queries/s, {int(size):,} at a time")
        axis.set_ylabel(f"recall {k}@{k}")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7, loc="lower left")
    figure.suptitle(f"{data['n']:,} x {data['d']}, {data['metric']}, {record['device']['name']}", fontsize=10)
    figure.tight_layout()
    path = Path(folder) / f"{name}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
