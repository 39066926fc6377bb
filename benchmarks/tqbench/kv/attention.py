"""`tq bench kv --suite attention`: one decode step's attention alone, packed states beside plain ones."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from ..errors import BenchError
from ..progress import progress_bar
from ..records import new_record
from .journal import Journal
from .models import load_config
from .options import KVOptions
from .pages import Sheet, print_tables, write_sheets

__all__ = ["cpu_case", "cuda_case", "run", "show", "write_page"]

_CPU = (
    "without a CUDA device: the reference path, which decodes blocks of states; the fused kernel needs CUDA"
)
Row = dict[str, Any]


def run(options: KVOptions) -> dict[str, Any]:
    """Time every geometry, batch and context at every rate.

    Raises
    ------
    BenchError
        For codes that this suite does not time, malformed heads, and packages or configurations that are missing.
    """
    if options.code != ("chain",):
        raise BenchError(f"code must be chain for the attention suite, got {', '.join(options.code)}")
    shapes = [_shape(text) for text in options.heads] or [_shape_of(options)]
    import torch

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        raise BenchError(f"device must be one that is there, got {device!r} without a CUDA device")
    lengths = options.lengths or ((1024,) if options.quick else (8192, 32768) if on_gpu else (1024, 4096))
    if any(n % 16 for n in lengths):
        raise BenchError(f"lengths must be multiples of 16 for the attention suite, got {lengths}")
    batches = options.batches or ((1,) if options.quick else (1, 8) if on_gpu else (1, 4))
    repeats = options.repeats or (3 if options.quick else 10)
    settings = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "threads": torch.get_num_threads(),
        "dtype": "bfloat16" if on_gpu else "float32", "repeats": repeats, "seed": options.seed,
        "path": "the fused kernel, in CUDA graphs, data out of the second-level cache" if on_gpu else _CPU,
    }  # fmt: skip
    journal = Journal(options.out, "kv-attention", settings, options.fresh)
    grid = list(itertools.product(shapes, batches, lengths))
    rows: list[Row] = []
    with progress_bar() as bar:
        task = bar.add_task("cases", total=len(grid), detail="")
        for (heads, kv_heads, d), batch, tokens in grid:
            case = {"heads": heads, "kv_heads": kv_heads, "d": d, "batch": batch, "tokens": tokens}
            bar.update(task, detail=f"{heads}/{kv_heads}/{d}, {batch} x {tokens}")
            key = f"{' '.join(map(str, case.values()))} {' '.join(f'{b:g}' for b in options.bits)}"
            made = journal.get(key)
            if made is None:
                torch.manual_seed(options.seed)
                made = (cuda_case if on_gpu else cpu_case)(case, options.bits, repeats)
                journal.put(key, made)
            rows += [case | row for row in made]
            bar.advance(task)
    name = "heads" if options.heads else options.model_id.replace(":", "-").rsplit("/", 1)[-1]
    return new_record(
        "kv-attention",
        dataset={"name": name, "description": f"attention of one step, {settings['path']}"},
        settings=settings | {"journal": journal.path.name},
        results=rows,
    )


def _shape(text: str) -> tuple[int, int, int]:
    try:
        heads, kv_heads, d = (int(part) for part in text.split("/"))
    except ValueError:
        heads = kv_heads = d = 0
    if min(heads, kv_heads, d) < 1 or heads % kv_heads:
        raise BenchError(f"heads must be QUERY/KEY-VALUE/DIMENSION such as 32/8/128, got {text!r}")
    return heads, kv_heads, d


def _shape_of(options: KVOptions) -> tuple[int, int, int]:
    config = load_config(options).get_text_config(decoder=True)
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads, config.num_key_value_heads, d


def cuda_case(case: dict[str, int], rates: tuple[float, ...], repeats: int) -> list[Row]:
    """Microseconds of the fused kernel at each rate, and of every way to attend to bfloat16 states."""
    import torch

    from .decode_timing import copies, microseconds, packed_calls, plain_methods

    batch, heads, kv_heads, d, tokens = (case[n] for n in ("batch", "heads", "kv_heads", "d", "tokens"))
    shape = (batch, kv_heads, tokens, d)
    nbytes = 4 * batch * kv_heads * tokens * d
    q = torch.randn(batch, heads, 1, d, device="cuda", dtype=torch.bfloat16)
    states = [
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        for _ in range(copies(nbytes))
    ]
    rows: list[Row] = []
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PyTorch warns of every backend that does not take a case; the row says so
        for name, method in plain_methods(case, flex=False):
            try:
                calls = [lambda k=k, v=v, method=method: method(q, k, v) for k, v in states]
                us = microseconds(calls, repeats)
                rows.append({"method": name, "status": "ok", "us": us, "bytes": nbytes, "packed": False})
            except RuntimeError as error:
                reason = str(error).splitlines()[0][:200]
                rows.append({"method": name, "status": "skipped", "reason": reason, "packed": False})
    del states
    for bits in rates:
        calls, read = packed_calls(case, bits, 0)
        us = microseconds(calls, repeats)
        rows.append({"method": f"chain-{bits:g}", "status": "ok", "us": us, "bytes": read, "packed": True})
    torch.cuda.empty_cache()
    return rows


def cpu_case(case: dict[str, int], rates: tuple[float, ...], repeats: int) -> list[Row]:
    """Microseconds of torch's attention and of the reference path, with each run; `difference` is of the outputs."""
    import torch
    from transformers import Qwen3Config

    from tqkv.attention import packed_attention
    from tqkv.cache import TurboQuantCache

    batch, heads, kv_heads, d, tokens = (case[n] for n in ("batch", "heads", "kv_heads", "d", "tokens"))
    q = torch.randn(batch, heads, 1, d)
    keys, values = torch.randn(2, batch, kv_heads, tokens, d)
    config = Qwen3Config(
        num_hidden_layers=1, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=d, vocab_size=8
    )
    calls: dict[str, Any] = {
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
    }
    sizes = {"sdpa": keys.nbytes + values.nbytes}
    for bits in rates:
        cache = TurboQuantCache(config, bits=bits, sink_tokens=0, recent_tokens=0)
        layer = cache.packed_layers[0]
        cache.update(keys, values, 0)
        view = layer.view()
        calls[f"chain-{bits:g}"] = lambda view=view: packed_attention(q, view, None, d**-0.5)
        sizes[f"chain-{bits:g}"] = sum(layer.memory()[name] for name in ("codes", "scales"))
    with torch.inference_mode():
        outputs = {name: call() for name, call in calls.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                start = perf_counter()
                call()
                seconds[name].append(perf_counter() - start)
    true = outputs["sdpa"]
    return [
        {
            "method": name, "status": "ok", "us": 1e6 * median(taken), "bytes": sizes[name], "packed": name != "sdpa",
            "difference": float((outputs[name] - true).norm() / true.norm()), "runs": taken,
        }
        for name, taken in seconds.items()
    ]  # fmt: skip


_CASE = ("heads", "kv_heads", "d", "batch", "tokens")
_HEADS = ("method", "heads", "batch", "tokens", "us", "GB/s", "over the best plain")


def _best(rows: list[Row]) -> dict[tuple[int, ...], float]:
    best: dict[tuple[int, ...], float] = {}
    for row in rows:
        if row["status"] == "ok" and not row["packed"]:
            case = tuple(row[name] for name in _CASE)
            best[case] = min(row["us"], best.get(case, row["us"]))
    return best


def _sheets(record: dict[str, Any]) -> list[Sheet]:
    best, lines = _best(record["results"]), []
    for r in record["results"]:
        where = [r["method"], f"{r['heads']}/{r['kv_heads']}/{r['d']}", str(r["batch"]), f"{r['tokens']:,}"]
        if r["status"] != "ok":
            lines.append([*where, "", "", r["reason"][:60]])
            continue
        ratio = best.get(tuple(r[name] for name in _CASE), float("nan")) / r["us"]
        lines.append([*where, f"{r['us']:,.1f}", f"{r['bytes'] / r['us'] / 1e3:,.1f}", f"{ratio:.2f}"])
    return [("Attention of one step", _HEADS, lines)]


def show(record: dict[str, Any], console: Any) -> None:
    """Print times and ratios."""
    print_tables(console, _sheets(record), [record["settings"]["path"]])


def write_page(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html."""
    s = record["settings"]
    measured = f"{s['device']}, {s['dtype']}, median of {s['repeats']} repeats; {s['path']}."
    title = f"Attention over packed states: {record['dataset']['name']}"
    return write_sheets(record, folder, name, title, measured, _draw(record), _sheets(record), [s["path"]])


def _draw(record: dict[str, Any]):
    from matplotlib.figure import Figure

    rows = [r for r in record["results"] if r["status"] == "ok"]
    groups = list(dict.fromkeys((r["heads"], r["kv_heads"], r["d"], r["batch"]) for r in rows))
    figure = Figure(figsize=(max(5.0, 4.4 * len(groups)), 4.4), layout="constrained")
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        own = [r for r in rows if (r["heads"], r["kv_heads"], r["d"], r["batch"]) == group]
        for method in dict.fromkeys(r["method"] for r in own):
            line = sorted((r for r in own if r["method"] == method), key=lambda r: r["tokens"])
            style = "o-" if line[0]["packed"] else "x:"
            axes.plot([r["tokens"] for r in line], [r["us"] for r in line], style, label=method)
        ticks = sorted({r["tokens"] for r in own})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.set_xlabel("tokens")
        axes.set_ylabel("microseconds")
        axes.set_title("{}/{} heads of {}, batch {}".format(*group), fontsize=10)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=7, frameon=False)
    return figure
