"""`tq bench kv --suite throughput`: prefill, time to the first token and tokens a second of every cache."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from ..errors import BenchError, Unavailable
from ..progress import progress_bar
from ..records import new_record
from .journal import Journal
from .models import LoadedModel, load_model
from .options import KVOptions
from .pages import Sheet, print_tables, write_sheets

__all__ = ["run", "show", "write_page"]

_PLAIN = ("dynamic", "static", "static graph", "quanto-4", "quanto-2", "hqq-4", "hqq-2")


def run(options: KVOptions, loaded: LoadedModel | None = None) -> dict[str, Any]:
    """Time every cache at every context and batch, in turn, after one warm-up each.

    Raises
    ------
    BenchError
        When the model or a package is missing, or a name of a cache is unknown.
    """
    packed = {
        f"{p['code']}-{p['bits']:g}{form}": p for p in options.packed() for form in ("", " fixed", " graph")
    }
    known = [*_PLAIN, *packed]
    unknown = [name for name in options.caches if name not in known]
    if unknown:
        raise BenchError(f"caches must be of {', '.join(known)}, got {', '.join(unknown)}")
    loaded = loaded or load_model(options)
    import torch

    from .generation import Case

    on_gpu = loaded.model.device.type == "cuda"
    lengths = options.lengths or ((256,) if options.quick else (4096, 32768) if on_gpu else (512, 2048))
    batches = options.batches or ((1,) if options.quick else (1, 8) if on_gpu else (1, 4))
    repeats = options.repeats or (2 if options.quick else 3)
    steps = options.samples or (8 if options.quick else 64 if on_gpu else 16)
    settings = {
        "model": loaded.name, "weights": loaded.fingerprint(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."), "device": _device(loaded.model),
        "threads": torch.get_num_threads(),
        "tokens_decoded": steps, "repeats": repeats, "warmup": 1, "seed": options.seed,
        "sink_tokens": options.sink_tokens, "recent_tokens": options.recent_tokens,
    }  # fmt: skip
    journal = Journal(options.out, f"kv-throughput-{loaded.name}", settings, options.fresh)
    names = options.caches or known
    window = {"sink_tokens": options.sink_tokens, "recent_tokens": options.recent_tokens}
    results = []
    with progress_bar() as bar:
        task = bar.add_task(
            "caches", total=len(lengths) * len(batches) * len(names) * (repeats + 1), detail=""
        )
        for tokens in lengths:
            for batch in batches:
                key = f"{batch} {tokens} {' '.join(names)}"
                made = journal.get(key)
                if made is None:
                    case = Case(loaded.model, batch, tokens, steps, options.seed)
                    made = _cell(case, {name: packed.get(name) for name in names}, window, repeats, bar, task)
                    journal.put(key, made)
                results += made
    return new_record(
        "kv-throughput",
        dataset={"name": loaded.name, "description": loaded.description},
        settings=settings | {"journal": journal.path.name},
        results=results,
    )


def _cell(
    case: Any, caches: dict[str, Any], window: dict[str, int], repeats: int, bar: Any, task: Any
) -> list[dict[str, Any]]:
    """Rows of all caches, timed in turn; kept as one, since times of different hours do not compare."""
    from .generation import timed

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in caches}
    absent: dict[str, str] = {}
    for repeat in range(repeats + 1):
        for name, packed in caches.items():
            bar.update(task, advance=1, detail=f"{name}, {case.batch} x {case.tokens}")
            if name in absent:
                continue
            try:
                row = timed(case, name, packed, window)
            except Unavailable as error:
                absent[name] = str(error)
                continue
            if repeat:  # the first warms up
                runs[name].append(row)
    return [_row(name, case.batch, case.tokens, case.steps, runs[name], absent.get(name)) for name in caches]


def _device(model: Any) -> str:
    import torch

    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)


def _row(
    name: str, batch: int, tokens: int, steps: int, runs: list[dict[str, float]], absent: str | None
) -> dict[str, Any]:
    where = {"cache": name, "batch": batch, "tokens": tokens}
    if absent is not None:
        return where | {"status": "absent", "reason": absent}
    seconds = median(run["decode_seconds"] for run in runs)
    return where | {
        "status": "ok",
        "prefill_seconds": median(run["prefill_seconds"] for run in runs),
        "first_token_seconds": median(run["first_token_seconds"] for run in runs),
        "tokens_per_second": batch * steps / seconds,
        "step_ms": 1e3 * seconds / steps,
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "fused": runs[-1]["fused"],
        "fallback": runs[-1]["fallback"],
        "runs": runs,
    }


_HEADS = ("cache", "batch", "tokens", "prefill s", "first token s", "tokens/s", "ms a step", "over dynamic")


def _sheets(record: dict[str, Any]) -> list[Sheet]:
    rows = record["results"]
    usual = {(r["batch"], r["tokens"]): r for r in rows if r["cache"] == "dynamic" and r["status"] == "ok"}
    lines = []
    for r in rows:
        where = [r["cache"], str(r["batch"]), f"{r['tokens']:,}"]
        if r["status"] != "ok":
            lines.append([*where, "", "", "", "", "absent"])
            continue
        base = usual.get((r["batch"], r["tokens"]))
        ratio = f"{r['tokens_per_second'] / base['tokens_per_second']:.2f}" if base else ""
        lines.append([
            *where, f"{r['prefill_seconds']:.3f}", f"{r['first_token_seconds']:.3f}",
            f"{r['tokens_per_second']:,.1f}", f"{r['step_ms']:.2f}", ratio,
        ])  # fmt: skip
    return [("Medians of repeats, caches in turn", _HEADS, lines)]


def _notes(record: dict[str, Any]) -> list[str]:
    absent = {r["cache"]: r["reason"] for r in record["results"] if r["status"] != "ok"}
    notes = [f"{name}: {reason}" for name, reason in absent.items()]
    packed = [r for r in record["results"] if r["status"] == "ok" and r["fallback"]]
    if packed:
        names = ", ".join(dict.fromkeys(r["cache"] for r in packed))
        notes.append(f"{names}: attention decoded its states; the fused kernel needs a CUDA device")
    return notes


def show(record: dict[str, Any], console: Any) -> None:
    """Print the medians and what was absent."""
    console.print(f"{record['dataset']['description']}, {record['settings']['device']}", highlight=False)
    print_tables(console, _sheets(record), _notes(record))


def write_page(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html."""
    s = record["settings"]
    measured = (
        f"{record['dataset']['description']} on {s['device']}; random prompts, {s['tokens_decoded']} tokens decoded "
        f"greedily; one warm-up, {s['repeats']} repeats, all caches in turn."
    )
    title = f"Throughput of caches: {record['dataset']['name']}"
    return write_sheets(record, folder, name, title, measured, _draw(record), _sheets(record), _notes(record))


def _draw(record: dict[str, Any]):
    from matplotlib.figure import Figure

    rows = [r for r in record["results"] if r["status"] == "ok"]
    cells = list(dict.fromkeys((r["batch"], r["tokens"]) for r in rows))
    names = list(dict.fromkeys(r["cache"] for r in rows))
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    kinds = (
        ("tokens_per_second", "tokens a second, decoding"),
        ("first_token_seconds", "seconds to the first token"),
    )
    width = 0.8 / max(1, len(names))
    for axes, (what, title) in zip(panels, kinds, strict=True):
        for number, name in enumerate(names):
            own = {(r["batch"], r["tokens"]): r[what] for r in rows if r["cache"] == name}
            places = [i + (number - (len(names) - 1) / 2) * width for i in range(len(cells))]
            axes.bar(places, [own.get(cell, float("nan")) for cell in cells], width, label=name)
        axes.set_xticks(range(len(cells)), [f"{b} x {n:,}" for b, n in cells], fontsize=8)
        axes.set_xlabel("batch x tokens of context")
        axes.set_title(title, fontsize=10)
        axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].legend(fontsize=7, frameon=False)
    figure.suptitle(f"{record['dataset']['description']}, {record['settings']['device']}", fontsize=10)
    return figure
