"""The decode attention alone: packed states beside the fastest attention over bfloat16 ones, in CUDA graphs."""

from __future__ import annotations

import math
from typing import Any

from ..checks import Check, at_least, skipped
from .context import Context

__all__ = ["check_attention", "judge"]

GROUP = "Attention kernel"
_GEOMETRIES = (
    (32, 8, 128),
    (24, 4, 256),
)  # query heads, key-value heads, head dimension: Qwen3-8B, Qwen3.6-27B
_REPLAYS = 5  # at least


def check_attention(context: Context) -> tuple[list[Check], dict[str, Any] | None]:
    """Time of a decode step's attention beside the fastest of PyTorch's backends and our own bfloat16 kernel."""
    if not context.device_name:
        reason = "there is no CUDA device: on a processor attention runs over decoded states"
        return [skipped(GROUP, "time beside attention over bfloat16 states", reason)], None
    from ..kv.decode_timing import microseconds, packed_calls

    o = context.options
    rows = []
    for heads, kv_heads, d in _GEOMETRIES:
        for tokens in (32768,) if o.quick else (8192, 32768):
            case = {"batch": 1, "heads": heads, "kv_heads": kv_heads, "d": d, "tokens": tokens}
            backend, full_us = _fastest(case, max(_REPLAYS, o.repeats))
            for bits in dict.fromkeys((2.0, o.needle_bits)):
                calls, _ = packed_calls(case, bits, window=0)
                us = microseconds(calls, max(_REPLAYS, o.repeats))
                rows.append(case | {"bits": bits, "us": us, "full_us": full_us, "backend": backend})
    return judge(rows), {"suite": "all-attention", "results": rows}


def _fastest(case: dict[str, int], replays: int) -> tuple[str, float]:
    """Name and microseconds of the fastest method over bfloat16 states."""
    import torch

    from ..kv.decode_timing import copies, microseconds, plain_methods

    shape = [case[name] for name in ("batch", "kv_heads", "tokens", "d")]
    q = torch.randn(case["batch"], case["heads"], 1, case["d"], device="cuda", dtype=torch.bfloat16)
    sides = [
        torch.randn(2, *shape, device="cuda", dtype=torch.bfloat16).unbind()
        for _ in range(copies(4 * math.prod(shape)))
    ]
    taken = {}
    for name, method in plain_methods(case, flex=False):
        calls = [lambda k=k, v=v, method=method: method(q, k, v) for k, v in sides]
        try:
            taken[name] = microseconds(calls, replays)
        except RuntimeError:  # not every backend takes every case; the split kernel does
            continue
    return min(taken.items(), key=lambda item: item[1])


def judge(rows: list[dict[str, Any]]) -> list[Check]:
    """PASS where the packed kernel is not slower."""
    return [
        at_least(
            GROUP,
            f"{row['heads']} heads, {row['kv_heads']} of keys, d = {row['d']}, {row['tokens']:,} tokens, "
            f"{row['bits']:g} bits: speed over bfloat16",
            row["full_us"] / row["us"],
            1.0,
            warn=0.9,
            reason=f"{row['us']:.3g} us, {row['backend']} {row['full_us']:.3g} us",
        )
        for row in rows
    ]
