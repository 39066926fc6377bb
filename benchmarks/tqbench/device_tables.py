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
        f"Model {record['settings']['model']}, {data['windows']} windows of {data['tokens']:,} tokens, "
        f"text: {data.get('text', data['name'])}; "
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


def _index(record: dict[str, Any]) -> str:
    """Times of the index on a device beside torch's bfloat16 product, a number of queries a row."""
    results, settings = record["results"], record["settings"]
    limits = results.get("limits", {})
    product = {row["nq"]: row["median_ms"] for row in results.get("torch_bf16", ())}
    lines = [
        "| queries | ms | queries/s | codes, TB/s | products, TFLOP/s | torch bfloat16, ms |",
        "|---:|---:|---:|---:|---:|---|",
    ]
    for row in results["search"]:
        took = product.get(row["nq"])
        cells = [
            f"{row['nq']:,}",
            f"**{row['median_ms']:.3f}**",
            f"{row['queries_per_second']:,.0f}",
            _rate(row["code_bytes_per_second"], limits.get("copy_bytes_per_second"), 2),
            _rate(row["product_flops_per_second"], limits.get("bf16_flops_per_second"), 0),
            f"{took:.3f} (x{took / row['median_ms']:.2f})" if took else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    k = settings["k"]
    facts = [
        f"{settings['n']:,} x {settings['d']} normal vectors, {settings['bits']:g} bits, {settings['metric']}, k = {k}",
        *([f"recall {k}@{k} {results['recall_k_at_k']:.3f}"] if "recall_k_at_k" in results else []),
        f"{results['index_bytes'] / 2**30:.2f} GiB, added at {results['add_vectors_per_second'] / 1e6:.1f} million/s",
        *(["shares are of this card's copy and bfloat16 product"] if limits else []),
    ]
    text = "; ".join(facts) + ". "
    return "\n".join([*lines, "", text + _device(record, "medians of events, the host's work among them")])


def _rate(rate: float, limit: float | None, digits: int) -> str:
    """A rate in units of 10^12, and its share of what the card can do where that is known."""
    return f"{rate / 1e12:.{digits}f}" + (f" ({rate / limit:.0%})" if limit else "")


_METHOD_NAMES = {
    "dynamic": "bfloat16, `DynamicCache`",
    "static": "bfloat16, `StaticCache`, a graph",
    "flash": "bfloat16, allocated once, FlashAttention, a graph",
    "cudnn": "bfloat16, allocated once, cuDNN, a graph",
    "split": "bfloat16, allocated once, our split kernel, a graph",
    "packed": "**packed, fixed capacity, a graph**",
    "packed eager": "packed, fixed capacity",
    "packed growing": "**packed, growing**",
}


def _models(record: dict[str, Any]) -> str:
    """Steps of a whole model with every cache, a method a row; then prompts' peaks and the longest contexts."""
    result, bits = record["results"], record["settings"]["bits"]
    lines = [
        "| batch x tokens | cache and attention | GiB of cache | ms a step | tokens/s "
        "| packed in a graph is faster by |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for cell in result["cells"]:
        packed = cell["methods"]["packed"]
        for name, row in cell["methods"].items():
            if "skipped" in row:
                continue
            factor = "" if name == "packed" else f"{row['ms'] / packed['ms']:.2f}"
            cells = [
                f"{cell['batch']} x {cell['tokens']:,}",
                _METHOD_NAMES[name],
                f"{row['cache_bytes'] / 2**30:.2f}",
                f"{row['ms']:.2f}",
                f"{row['tokens_per_second']:.1f}",
                factor,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    notes = [f"{result['model']}, {result['parameters'] / 1e9:.1f} G random weights, {bits:g} bits"]
    if record["settings"].get("compiled"):
        notes.append("the model compiled by `torch.compile` where its step is captured in a graph")
    if prompt := result.get("prompt"):
        peaks = [
            f"{prompt[name]['prefill_peak_bytes'] / 2**30:.1f} and {prompt[name]['decode_peak_bytes'] / 2**30:.2f} GiB"
            for name in ("dynamic", "packed")
        ]
        notes.append(
            f"a prompt of {prompt['tokens']:,} tokens and steps after it peak at {peaks[0]} beside the weights with "
            f"`DynamicCache`, at {peaks[1]} packed"
        )
    if longest := result.get("capacity"):
        plain, packed = (longest[name]["tokens"] for name in ("bfloat16", "packed"))
        notes.append(
            f"the longest context that a step ran on: {plain:,} tokens in bfloat16, {packed:,} packed "
            f"({packed / plain:.2f} times)"
        )
    return "\n".join([*lines, "", "; ".join(notes) + ". " + _device(record, "medians of steps")])


def _rivals(record: dict[str, Any]) -> str:
    """Indexes of one CUDA device on one set: recall, bytes and times, a method and a number of probes a row."""
    k, data = record["settings"]["k"], record["dataset"]
    done = [row for row in record["results"] if row["status"] == "ok"]
    sizes = list(done[0]["milliseconds"])
    lines = [
        f"| method | bits | probes | bytes | recall {k}@{k} | train s | add s | "
        + " | ".join(f"{int(s):,} {'query' if s == '1' else 'queries'}, ms" for s in sizes)
        + " |",
        "|---|---:|---:|---:|---:|---:|---:|" + "---:|" * len(sizes),
    ]
    for row in done:
        name = f"**{row['label']}**" if row["method"] == "chain" else row["label"]
        cells = [
            name,
            f"{row['bits']:g}",
            str(row["probes"] or ""),
            f"{row['bytes_per_vector']:.0f}",
            f"{row[f'recall_{k}_at_{k}']:.3f}",
            f"{row['train_seconds']:.2f}",
            f"{row['add_seconds']:.2f}",
            *(f"{row['milliseconds'][s]:.3f}" for s in sizes),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    text = f"{data['n']:,} x {data['d']}, {data['metric']}, {data['description']}; "
    return "\n".join([*lines, "", text + _device(record, "medians of events")])


def _device(
    record: dict[str, Any], how: str = "medians of graph replays with data out of the second-level cache"
) -> str:
    device = record["device"]
    return (
        f"{device['name']}, torch {device['torch']}, {how}; {record['created'][:10]}; `{record['command']}`."
    )


# kind of table -> (suite of the record, how it is made)
DEVICE_TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "kv-distortion": ("kv-distortion", _distortion),
    "gpu-attention": ("gpu-attention", _attention),
    "gpu-model": ("gpu-model", _models),
    "gpu-index": ("gpu-index", _index),
    "gpu-rivals": ("ann-cuda", _rivals),
}
