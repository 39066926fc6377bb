"""Decoding from the packed cache beside full precision, step by step, in turn."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

from ..checks import Check, at_least
from .context import Context
from .quoted import REVIEW
from .texts import sample_text

__all__ = ["check_throughput", "judge"]

GROUP = "Throughput of decoding"
_REVIEWED = 0.75  # of full precision, which the review's simulation reached
_STEPS, _QUICK_STEPS = 16, 8


def check_throughput(context: Context) -> tuple[list[Check], dict[str, Any]]:
    """Tokens a second of every cache after one prompt, medians of interleaved repeats."""
    import torch
    from transformers import DynamicCache

    from tqkv.cache import TurboQuantCache

    o, model = context.options, context.loaded.model
    steps = _QUICK_STEPS if o.quick else _STEPS
    tokens = (16384 if context.device_name else 1024) * (1 if o.quick else 2)
    ids = context.loaded.tokenizer(sample_text(context))["input_ids"]
    prompt = torch.tensor([(ids * (tokens // len(ids) + 1))[:tokens]], device=model.device)
    caches: dict[str, Any] = {"full": DynamicCache(config=model.config)}
    for bits in dict.fromkeys((2.0, o.needle_bits)):
        caches[f"chain-{bits:g}"] = TurboQuantCache(model.config, bits=bits)
    taken: dict[str, list[float]] = {name: [] for name in caches}
    with torch.inference_mode():
        for cache in caches.values():
            model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for repeat in range(o.warmup + o.repeats):
            for name, cache in caches.items():
                seconds = _decode(model, prompt[:, :1], cache, steps, bool(context.device_name))
                if repeat >= o.warmup:
                    taken[name].append(seconds / steps)
    rows = [
        {
            "cache": name,
            "tokens": tokens,
            "ms": 1e3 * median(s),
            "tokens_per_second": 1 / median(s),
            "repeats": len(s),
        }
        for name, s in taken.items()
    ]
    record = {"suite": "all-throughput", "steps": steps, "warmup": o.warmup, "results": rows}
    return judge(rows, bool(context.device_name)), record


def judge(rows: list[dict[str, Any]], on_gpu: bool) -> list[Check]:
    """Speed of every packed cache over full precision: a bar on a GPU, for information on a processor."""
    full = next(row for row in rows if row["cache"] == "full")
    checks = []
    for row in rows:
        if row is full:
            continue
        name = f"{row['cache']}, {row['tokens']:,} tokens: speed over full precision{'' if on_gpu else ', processor'}"
        ratio = row["tokens_per_second"] / full["tokens_per_second"]
        said = f"{row['tokens_per_second']:.4g} and {full['tokens_per_second']:.4g} tokens/s"
        if on_gpu:
            checks.append(
                at_least(GROUP, name, ratio, _REVIEWED, warn=0.25, review=REVIEW["decode"], reason=said)
            )
        else:
            reason = f"{said}; the fused kernel needs a GPU"
            threshold = "none: for information on a processor"
            checks.append(
                Check(GROUP, name, ratio, threshold, "PASS", review=REVIEW["decode"], reason=reason)
            )
    return checks


def _decode(model: Any, token: Any, cache: Any, steps: int, on_gpu: bool) -> float:
    """Seconds of so many greedy steps."""
    import torch

    if on_gpu:
        torch.cuda.synchronize()
    start = perf_counter()
    for _ in range(steps):
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    if on_gpu:
        torch.cuda.synchronize()
    return perf_counter() - start
