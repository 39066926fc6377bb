"""Memory of weights and cache for any configuration, without weights, and of a real cache beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..errors import BenchError
from ..records import new_record
from ..report import page, save_report
from .models import load_config
from .options import KVOptions

__all__ = [
    "REVIEW",
    "account",
    "implied_weights",
    "review_config",
    "review_rows",
    "run",
    "show",
    "write_page",
]

REVIEW = {32768: (2.0, 1.03), 131072: (8.0, 1.12), 262144: (16.0, 1.23)}
"""The public review's table of Qwen3.6-27B at 2.5 bits: tokens -> GiB of keys and values in bfloat16, ratio in all."""
_REVIEW_BITS = 2.5
_GIB = 2**30
_MEASURED_TOKENS = 400


def run(options: KVOptions) -> dict[str, Any]:
    """Account for the model's configuration and for the review's, and measure a real layer.

    Raises
    ------
    BenchError
        When the configuration or a package is missing, or has layers that are not known.
    """
    config = load_config(options)
    import torch

    from .accounting import geometry, measured_layer, packed_layer

    dtype = torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype)
    found = geometry(config, dtype)
    lengths = options.lengths or ((32768,) if options.quick else tuple(REVIEW))
    window = (options.sink_tokens, options.recent_tokens)
    rows = [account(found, n, packed, window) for n in lengths for packed in options.packed()]
    beside = []
    for packed in options.packed():
        bits, code = float(packed["bits"]), str(packed["code"])
        kept = {"sink_tokens": window[0], "recent_tokens": window[1]}
        tokens = _MEASURED_TOKENS + sum(window)
        got = measured_layer(config, found.packable[0], dtype, tokens=tokens, **packed, **kept)
        counted = packed_layer(found.packable[0], tokens, bits, code, *window, found.itemsize)
        beside.append(
            packed | {"tokens": tokens, "counted": sum(counted.values()), "measured": sum(got.values())}
        )
    name = "probe" if options.model_id == "probe" else Path(options.model_id).name
    return new_record(
        "kv-memory",
        dataset={"name": name, "description": f"{name}, {len(found.packable)} full-attention layers"},
        settings={
            "dtype": str(dtype).removeprefix("torch."),
            "sink_tokens": window[0],
            "recent_tokens": window[1],
            "batch": 1,
        },
        results=rows,
        measured=beside,
        review=review_rows(),
    )


def account(
    found: Any, tokens: int, packed: Mapping[str, Any], window: tuple[int, int] = (4, 128)
) -> dict[str, Any]:
    """Bytes at `tokens` tokens of one sequence, by part, and their ratios.

    Returns
    -------
    dict
        `weights`, `recurrent`, `sliding`, `full` (keys and values in full precision), `codes`, `scales`, `window`,
        `tables`, `packed` (their sum), `kv_ratio` (full / packed) and `total_ratio` (everything included).
    """
    from .accounting import packed_layer

    parts: dict[str, int] = dict.fromkeys(("codes", "scales", "window", "tables"), 0)
    bits, code = float(packed["bits"]), str(packed["code"])
    layers = {
        shape: packed_layer(shape, tokens, bits, code, *window, found.itemsize) for shape in found.packable
    }
    for shape in found.packable:
        for part, size in layers[shape].items():
            parts[part] += size
    # one float32 rotation for all layers of a head dimension
    parts["tables"] += sum(4 * d * d for d in {d for shape in found.packable for d in shape[1:]})
    full, size = found.full(tokens), sum(parts.values())
    rest = found.weights + found.recurrent + found.windows(tokens)
    return {
        "tokens": tokens, "bits": bits, "code": code, "weights": found.weights, "recurrent": found.recurrent,
        "sliding": found.windows(tokens), "full": full, **parts, "packed": size,
        "kv_ratio": full / size, "total_ratio": (rest + full) / (rest + size),
    }  # fmt: skip


def review_config() -> Any:
    """Qwen3.6-27B's text decoder as the review describes it: 64 layers of which every fourth has full attention."""
    from transformers import Qwen3_5TextConfig

    return Qwen3_5TextConfig(
        vocab_size=248320, hidden_size=5120, intermediate_size=17408, num_hidden_layers=64,
        num_attention_heads=24, num_key_value_heads=4, head_dim=256,
        linear_num_key_heads=16, linear_num_value_heads=48, linear_key_head_dim=128, linear_value_head_dim=128,
        tie_word_embeddings=False,
    )  # fmt: skip


def implied_weights(bits: float = _REVIEW_BITS) -> tuple[float, float]:
    """GiB of weights (least, most) with which all of the review's ratios come out as printed, codes alone counted.

    (W + kv) / (W + kv bits / 16) = r is solved for W at both ends of what rounds to r.
    """
    ends = []
    for kv, printed in REVIEW.values():
        packed = kv * bits / 16
        ends.append([(kv - r * packed) / (r - 1) for r in (printed + 0.005, printed - 0.005)])
    return max(low for low, _ in ends), min(high for _, high in ends)


def review_rows() -> list[dict[str, Any]]:
    """The review's table counted again: its bytes of keys and values, and its ratios.

    `ratio` counts codes, scales, window and the decoder's own parameters; `ratio_review_weights` counts codes alone
    beside weights in the middle of `implied_weights`.
    """
    from .accounting import geometry

    found = geometry(review_config())
    low, high = implied_weights()
    rows = []
    for tokens, (kv, printed) in REVIEW.items():
        row = account(found, tokens, {"bits": _REVIEW_BITS, "code": "chain"})
        full, middle = found.full(tokens) / _GIB, (low + high) / 2
        rows.append({
            "tokens": tokens, "kv_gib": full, "review_kv_gib": kv, "packed_gib": row["packed"] / _GIB,
            "weights_gib": row["weights"] / _GIB, "recurrent_gib": row["recurrent"] / _GIB,
            "ratio": row["total_ratio"], "review_ratio": printed, "implied_weights_gib": [low, high],
            "ratio_review_weights": (middle + full) / (middle + full * _REVIEW_BITS / 16),
        })  # fmt: skip
    return rows


_HEADS = ("tokens", "cache", "weights", "state", "sliding", "KV full", "codes", "scales", "window", "packed")
_HEADS += ("KV ratio", "total ratio")
_REVIEW_HEADS = ("tokens", "KV GiB", "review", "packed GiB", "weights GiB", "total ratio", "review's ratio")
_REVIEW_HEADS += ("codes alone, weights as the review's ratios imply",)


def _lines(record: dict[str, Any]) -> list[list[str]]:
    lines = []
    for row in record["results"]:
        names = ("weights", "recurrent", "sliding", "full", "codes", "scales", "window", "packed")
        sizes = [f"{row[name] / 2**20:,.1f}" for name in names]
        ratios = [f"{row['kv_ratio']:.2f}", f"{row['total_ratio']:.2f}"]
        lines.append([f"{row['tokens']:,}", f"{row['code']}-{row['bits']:g}", *sizes, *ratios])
    return lines


def _review_lines(record: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{row['tokens']:,}", f"{row['kv_gib']:.1f}", f"{row['review_kv_gib']:.1f}", f"{row['packed_gib']:.2f}",
            f"{row['weights_gib']:.1f}", f"{row['ratio']:.2f}", f"{row['review_ratio']:.2f}",
            f"{row['ratio_review_weights']:.2f}",
        ]
        for row in record["review"]
    ]  # fmt: skip


def _notes(record: dict[str, Any]) -> list[str]:
    low, high = record["review"][0]["implied_weights_gib"]
    notes = [
        f"{row['code']}-{row['bits']:g}: a real layer of {row['tokens']} tokens has {row['measured']:,} bytes, counted "
        f"{row['counted']:,}"
        for row in record["measured"]
    ]
    own = record["review"][0]["weights_gib"]
    return [
        *notes,
        f"The review's ratios imply weights of {low:.1f} to {high:.1f} GiB; the text decoder alone has {own:.1f} GiB",
    ]


def show(record: dict[str, Any], console: Any) -> None:
    """Print the accounts in MiB, the review's table, and what a real layer took."""
    from rich.table import Table

    tables = (
        (f"{record['dataset']['description']}: MiB of one sequence", _HEADS, _lines(record)),
        (f"Qwen3.6-27B at {_REVIEW_BITS} bits, as the review counts", _REVIEW_HEADS, _review_lines(record)),
    )
    for title, heads, lines in tables:
        table = Table(title=title)
        for head in heads:
            table.add_column(head, justify="right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for note in _notes(record):
        console.print(note)


def write_page(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html; BenchError when matplotlib is not installed or the folder cannot be written."""
    buffer = io.BytesIO()
    try:
        _draw(record).savefig(buffer, format="png", dpi=120)
    except ImportError as error:
        raise BenchError(f"the report needs {error.name}: pip install 'tqann[bench]'") from error
    body = "<h2>MiB of one sequence</h2>" + _table(_HEADS, _lines(record))
    body += f"<h2>Qwen3.6-27B at {_REVIEW_BITS} bits</h2>" + _table(_REVIEW_HEADS, _review_lines(record))
    body += "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in _notes(record)) + "</ul>"
    settings = record["settings"]
    measured = (
        f"{record['dataset']['description']}; {settings['dtype']}, batch {settings['batch']}, "
        f"{settings['sink_tokens']} first and {settings['recent_tokens']} last tokens in full precision."
    )
    title = f"Memory of the KV cache: {record['dataset']['name']}"
    html = page(record, title, measured, buffer.getvalue(), "Bytes by part", body)
    return save_report(folder, name, buffer.getvalue(), html)


def _table(heads: tuple[str, ...], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(v)}</td>" for v in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _draw(record: dict[str, Any]):
    """A matplotlib Figure: the cache in full precision beside packed ones, by part."""
    from matplotlib.figure import Figure

    bars: dict[str, dict[str, float]] = {}
    for row in record["results"]:
        bars.setdefault(f"{row['tokens']:,}\nfull", {"keys and values": row["full"] / _GIB})
        label = f"{row['tokens']:,}\n{row['code']}-{row['bits']:g}"
        bars[label] = {part: row[part] / _GIB for part in ("codes", "scales", "window", "tables")}
    figure = Figure(figsize=(max(6.0, 0.9 * len(bars)), 4.6), layout="constrained")
    axes = figure.subplots()
    labels, below = list(bars), [0.0] * len(bars)
    for part in ("keys and values", "codes", "scales", "window", "tables"):
        sizes = [bars[label].get(part, 0.0) for label in labels]
        axes.bar(labels, sizes, bottom=below, label=part)
        below = [b + s for b, s in zip(below, sizes, strict=True)]
    axes.set_ylabel("GiB")
    axes.set_title(record["dataset"]["description"])
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    return figure
