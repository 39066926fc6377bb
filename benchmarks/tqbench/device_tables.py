"""README tables of the cache and the GPU, from the records that their programs write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["DEVICE_TABLES"]


def _distortion(record: dict[str, Any]) -> str:
    """Divergence of the packed caches from the full-precision model, a rate a row."""
    rows = {(r["bits"], r["code"]): r for r in record["results"]}
    lines = [
        "| bits | bits with scales | KL divergence, chain | KL, paper's code | ratio "
        "| same top token, chain | paper's code |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for bits in sorted({bits for bits, _ in rows}):
        ours, paper = rows[bits, "chain"], rows[bits, "mse"]
        cells = [
            f"{bits:g}",
            f"{ours['effective_bits']:g}",
            f"**{ours['divergence']:.4f}**",
            f"{paper['divergence']:.4f}",
            f"{paper['divergence'] / ours['divergence']:.2f}",
            f"{100 * ours['agreement']:.1f}%",
            f"{100 * paper['agreement']:.1f}%",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    data = record["dataset"]
    origin = (
        f"Model {record['settings']['model']}, {data['windows']} windows of {data['tokens']:,} tokens of "
        f"{data['name']}, "
        f"every key and value packed, no full-precision window; {record['created'][:10]}; `{record['command']}`."
    )
    return "\n".join([*lines, "", origin])


def _attention(record: dict[str, Any]) -> str:
    """Time of decode attention over codes beside the best bfloat16, a shape a row."""
    widths = sorted({float(b) for r in record["results"] for b in r["packed"]})
    lines = [
        "| heads / KV heads x head_dim | batch | tokens | best bfloat16, us | "
        + " | ".join(f"{bits:g} bits, us" for bits in widths)
        + " |",
        "|---|---:|---:|---|" + "---:|" * len(widths),
    ]
    for r in record["results"]:
        times = {name: t["us"] for name, t in r["bf16"].items() if "us" in t}
        best = min(times, key=lambda name: times[name])
        cells = [
            f"{r['heads']} / {r['kv_heads']} x {r['d']}",
            str(r["batch"]),
            f"{r['tokens']:,}",
            f"{times[best]:.1f} ({best})",
        ]
        for bits in widths:
            took = r["packed"].get(f"{bits:g}", {}).get("us")
            cells.append(f"{took:.1f} (x{times[best] / took:.2f})" if took else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _device(record)])


def _device(record: dict[str, Any]) -> str:
    device = record["device"]
    return (
        f"{device['name']}, torch {device['torch']}, medians of graph replays with data out of the second-level cache; "
        f"{record['created'][:10]}; `{record['command']}`."
    )


# kind of table -> (suite of the record, how it is made)
DEVICE_TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "kv-distortion": ("kv-distortion", _distortion),
    "gpu-attention": ("gpu-attention", _attention),
}
