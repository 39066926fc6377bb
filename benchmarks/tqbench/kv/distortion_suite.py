"""`tq bench kv --suite distortion`: errors of real states, and what they do to a model's predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BenchError
from ..progress import progress_bar
from ..records import new_record
from .haystack import read_texts
from .journal import Journal
from .models import LoadedModel, load_model
from .options import KVOptions
from .pages import Sheet, print_tables, write_sheets

__all__ = ["run", "show", "stepped", "write_page"]

_BAR = 2.2  # divergence of the paper's code over that of the chain
_COLOURS = {"chain": "#0b5fd6", "mse": "#d1600a", "prod": "#8a4fbf"}


def run(options: KVOptions, loaded: LoadedModel | None = None) -> dict[str, Any]:
    """Measure every code and rate; what an interrupted run has measured is taken from its journal.

    Raises
    ------
    BenchError
        When the model or a package is missing, or the text is too short.
    """
    if loaded is None:
        exact = replace(options, dtype="float32") if options.dtype == "auto" else options
        loaded = load_model(exact)

    from .distortion import measure
    from .state_errors import capture, layer_errors

    tokens = options.lengths[0] if options.lengths else 256 if options.quick else 512
    count = options.samples or (2 if options.quick else 4)
    steps = tokens // 16
    windows, source = _windows(options, loaded, tokens, count)
    model = loaded.model
    settings = {
        "model": loaded.name, "weights": loaded.fingerprint(),
        "dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device),
        "attn_implementation": model.config._attn_implementation, "text": source,
        "windows": count, "tokens": tokens, "steps": steps, "seed": options.seed,
        "sink_tokens": options.sink_tokens, "recent_tokens": options.recent_tokens,
    }  # fmt: skip
    journal = Journal(options.out, f"kv-distortion-{loaded.name}", settings, options.fresh)
    window = {"sink_tokens": options.sink_tokens, "recent_tokens": options.recent_tokens}
    whole, decoded, layers = [], [], []
    states: Any = None
    with progress_bar() as bar:
        task = bar.add_task("caches", total=len(options.packed()), detail="")
        for packed in options.packed():
            label = f"{packed['code']}-{packed['bits']:g}"
            bar.update(task, detail=label)
            # The paper's codes are the paper's: no mean is taken off.
            made = (
                packed
                | {"seed": options.seed}
                | ({} if packed["code"] == "chain" else {"centre_keys": False})
            )
            found = journal.get(label)
            if found is None:
                states = capture(model, windows[:1]) if states is None else states
                found = {
                    "layers": layer_errors(model.config, states, made),
                    "whole": measure(model, windows, [made])[0].as_dict(),
                    "decoded": stepped(model, windows, steps, made | window),
                }
                journal.put(label, found)
            layers += [packed | row for row in found["layers"]]
            whole.append(packed | found["whole"])
            decoded.append(packed | found["decoded"])
            bar.advance(task)
    return new_record(
        "kv-distortion",
        dataset={
            "name": loaded.name, "description": loaded.description, "text": source, "windows": count, "tokens": tokens,
        },
        settings=settings | {"journal": journal.path.name},
        results=whole,
        decoded=decoded,
        layers=layers,
        ratios=_ratios(whole),
        bar=_BAR,
    )  # fmt: skip


def _windows(options: KVOptions, loaded: LoadedModel, tokens: int, count: int) -> tuple[Any, str]:
    """Windows int64 [count, tokens] at random places of the text, and the text's name."""
    import torch

    from .probe import probe_text

    if tokens % 16 or tokens < 32:
        raise BenchError(f"lengths must be a multiple of 16 from 32 on for distortion, got {tokens}")
    text = read_texts(options.text_dir) or probe_text()
    ids = loaded.tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < count * tokens:
        raise BenchError(f"the text must have {count * tokens} tokens for {count} windows, got {len(ids)}")
    places = torch.randperm(len(ids) // tokens, generator=torch.Generator().manual_seed(options.seed))[:count]
    rows = torch.tensor([ids[p * tokens : (p + 1) * tokens] for p in places.tolist()])
    return rows, Path(options.text_dir).name if options.text_dir else "the probe's own"


def stepped(model: Any, windows: Any, steps: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Predictions of the last `steps` tokens, decoded one at a time from a packed cache, beside full precision.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model in evaluation mode.
    windows : torch.Tensor
        int64 [batch, tokens]; all but the last `steps + 1` tokens are the prompt.
    settings : mapping
        Keyword arguments of `TurboQuantCache`.

    Returns
    -------
    dict
        As `Distortion.as_dict`, and the calls of attention: `fused`, `fallback`.

    Raises
    ------
    ValueError
        If nothing is left as prompt.
    """
    import torch
    from torch.nn import functional

    from tqkv.cache import TurboQuantCache

    from .distortion import Distortion

    ids = windows.to(model.device)
    first = ids.shape[1] - 1 - steps
    if first < 1:
        raise ValueError(f"steps must be less than {ids.shape[1] - 1}, got {steps}")
    cache = TurboQuantCache(model.config, **settings)
    sums = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[:, first:-1].float().log_softmax(-1)
        model(ids[:, :first], past_key_values=cache, use_cache=True)
        for step in range(steps):
            place = first + step
            logits = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True).logits[:, -1]
            packed, full = logits.float().log_softmax(-1), whole[:, step]
            target = ids[:, place + 1, None]
            sums += torch.stack([
                functional.kl_div(packed, full, reduction="sum", log_target=True),
                (packed.argmax(-1) == full.argmax(-1)).sum(),
                -packed.gather(1, target).sum(),
                -full.gather(1, target).sum(),
            ]).double().cpu()  # fmt: skip
    n = ids.shape[0] * steps
    row = Distortion(n, *(sums / n).tolist(), effective_bits=cache.effective_bits)
    return row.as_dict() | {"fused": cache.stats.fused, "fallback": cache.stats.fallback}


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Divergence of the paper's code over that of the chain at every rate that both have."""
    found = {(row["code"], row["bits"]): row["divergence"] for row in rows}
    both = [bits for code, bits in found if code == "chain" and ("mse", bits) in found]
    return [{"bits": b, "mse_over_chain": found["mse", b] / max(found["chain", b], 1e-12)} for b in both]


_HEADS = (
    "cache",
    "bits with scales",
    "KL, nats",
    "same top token",
    "perplexity",
    "full precision",
    "predictions",
)
_LAYER_HEADS = ("cache", "keys", "values", "inner products", "slope", "logits, rms", "output")


def _predictions(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            f"{r['code']}-{r['bits']:g}", f"{r['effective_bits']:.3f}", f"{r['divergence']:.5f}",
            f"{100 * r['agreement']:.1f}%", f"{math.exp(r['loss']):.4f}", f"{math.exp(r['full_loss']):.4f}",
            f"{r['tokens']:,}",
        ]
        for r in rows
    ]  # fmt: skip


def _means(record: dict[str, Any]) -> list[list[str]]:
    lines = []
    for made in record["results"]:
        own = [r for r in record["layers"] if (r["code"], r["bits"]) == (made["code"], made["bits"])]
        names = ("keys", "values", "inner", "slope", "logits", "output")
        means = [sum(r[name] for r in own) / len(own) for name in names]
        lines.append([f"{made['code']}-{made['bits']:g}", *(f"{mean:.4g}" for mean in means)])
    return lines


def _sheets(record: dict[str, Any]) -> list[Sheet]:
    s = record["settings"]
    kept = f"{s['sink_tokens']} first and {s['recent_tokens']} last tokens in full precision"
    return [
        ("Every token through its code", _HEADS, _predictions(record["results"])),
        (f"Decoded token by token, {kept}", _HEADS, _predictions(record["decoded"])),
        (
            "Keys, values and attention, relative squared errors, means of layers",
            _LAYER_HEADS,
            _means(record),
        ),
    ]


def _notes(record: dict[str, Any]) -> list[str]:
    return [
        f"{row['bits']:g} bits: divergence of mse over chain {row['mse_over_chain']:.2f}, at least {record['bar']:g} "
        f"wanted: {'met' if row['mse_over_chain'] >= record['bar'] else 'missed'}"
        for row in record["ratios"]
    ]


def show(record: dict[str, Any], console: Any) -> None:
    """Print predictions, errors and the ratios of the codes."""
    console.print(record["dataset"]["description"], highlight=False)
    print_tables(console, _sheets(record), _notes(record))


def write_page(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html, with a table of every layer."""
    s = record["settings"]
    measured = (
        f"{record['dataset']['description']}; {s['windows']} windows of {s['tokens']:,} tokens, text: {s['text']}. "
        "Teacher-forced, beside the same model in full precision."
    )
    names = ("keys", "values", "inner", "slope", "logits", "output")
    lines = [
        [f"{r['code']}-{r['bits']:g}, layer {r['layer']}", *(f"{r[name]:.4g}" for name in names)]
        for r in record["layers"]
    ]
    sheets = [*_sheets(record), ("Every layer", _LAYER_HEADS, lines)]
    title = f"Distortion of the KV cache: {record['dataset']['name']}"
    return write_sheets(record, folder, name, title, measured, _draw(record), sheets, _notes(record))


def _draw(record: dict[str, Any]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    means = {line[0]: [float(v) for v in line[1:]] for line in _means(record)}
    for code in dict.fromkeys(row["code"] for row in record["results"]):
        colour = _COLOURS[code]
        for kind, style in (("results", "o-"), ("decoded", "s:")):
            own = sorted((r for r in record[kind] if r["code"] == code), key=lambda r: r["bits"])
            label = f"{code}{', decoded with window' if kind == 'decoded' else ''}"
            bits = [r["bits"] for r in own]
            panels[0].plot(bits, [r["divergence"] for r in own], style, color=colour, label=label)
            panels[1].plot(bits, [100 * r["agreement"] for r in own], style, color=colour, label=label)
        bits = sorted(r["bits"] for r in record["results"] if r["code"] == code)
        for column, style, what in ((0, "o-", "keys"), (1, "^--", "values"), (5, "s:", "output")):
            errors = [means[f"{code}-{b:g}"][column] for b in bits]
            panels[2].plot(bits, errors, style, color=colour, label=f"{code}, {what}")
    for axes, title in zip(
        panels, ("KL divergence, nats", "same top token, %", "relative squared error"), strict=True
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("bits per dimension, without scales")
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=7, frameon=False)
    panels[0].set_yscale("log")
    panels[2].set_yscale("log")
    figure.suptitle(record["dataset"]["description"], fontsize=10)
    return figure
