"""The decode attention alone: packed states beside PyTorch's attention over bfloat16 ones, in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from ..checks import Check, at_least, skipped
from .context import Context

__all__ = ["check_attention", "judge"]

GROUP = "Attention kernel"
_GEOMETRIES = (
    (32, 8, 128),
    (24, 4, 256),
)  # query heads, key-value heads, head dimension: Qwen3-8B, Qwen3.6-27B
_BEYOND_L2 = 256 << 20  # bytes that the copies of the data exceed, so that no cache holds them
_ROUNDS = 3
Calls = list[Callable[[], Any]]


def check_attention(context: Context) -> tuple[list[Check], dict[str, Any] | None]:
    """Time of a decode step's attention over that of the fastest of PyTorch's backends."""
    if not context.device_name:
        reason = "there is no CUDA device: on a processor attention runs over decoded states"
        return [skipped(GROUP, "time beside attention over bfloat16 states", reason)], None
    o = context.options
    rows = []
    for heads, kv_heads, d in _GEOMETRIES:
        for tokens in (32768,) if o.quick else (8192, 32768):
            full = min(_full(heads, kv_heads, d, tokens, o.repeats), key=lambda row: row["us"])
            for bits in dict.fromkeys((2.0, o.needle_bits)):
                us = _microseconds(_packed(heads, kv_heads, d, tokens, bits), o.repeats)
                shape = {"heads": heads, "kv_heads": kv_heads, "d": d, "tokens": tokens, "bits": bits}
                rows.append(shape | {"us": us, "full_us": full["us"], "backend": full["backend"]})
    return judge(rows), {"suite": "all-attention", "results": rows}


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


def _full(heads: int, kv_heads: int, d: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Every backend that takes the case, with the heads of a group as heads and as queries of one head."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attention = torch.nn.functional.scaled_dot_product_attention
    count = max(2, -(-_BEYOND_L2 // (4 * kv_heads * tokens * d)))
    q = torch.randn(1, heads, 1, d, device="cuda", dtype=torch.bfloat16)
    grouped = q.view(1, kv_heads, heads // kv_heads, d)
    sides = [
        torch.randn(2, 1, kv_heads, tokens, d, device="cuda", dtype=torch.bfloat16).unbind()
        for _ in range(count)
    ]
    forms: tuple[tuple[str, Any, dict[str, Any]], ...]
    forms = (("gqa", q, {"enable_gqa": True}), ("grouped", grouped, {}))
    rows, refused = [], []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        for form, queries, options in forms:
            calls: Calls = [
                lambda k=k, v=v, queries=queries, options=options: attention(queries, k, v, **options)
                for k, v in sides
            ]
            try:
                with sdpa_kernel(backend):
                    us = _microseconds(calls, repeats)
            except RuntimeError as error:  # not every backend takes every case
                refused.append(str(error).splitlines()[0])
                continue
            rows.append({"backend": f"{backend.name.split('_')[0].lower()} {form}", "us": us})
    if not rows:
        raise RuntimeError(f"no backend of PyTorch's attention takes the case: {refused[0]}")
    return rows


def _packed(heads: int, kv_heads: int, d: int, tokens: int, bits: float) -> Calls:
    """Calls of the packed kernel on random codes, whose bytes are those of real ones."""
    import torch

    from tqcore.chain import chain_tables
    from tqkv.kernels.decode import PackedStates, decode_attention
    from tqkv.layout import PackedLayout

    size = PackedLayout(d, bits, "key").tile_bytes
    count = max(2, -(-_BEYOND_L2 // (2 * kv_heads * (tokens // 16 * size + 2 * tokens))))
    q = torch.randn(1, heads, 1, d, device="cuda", dtype=torch.bfloat16)
    lengths = torch.full((1,), tokens, dtype=torch.int32, device="cuda")
    signs = torch.randint(0, 2, (3, d), device="cuda") * 2.0 - 1.0

    def states() -> Any:
        codes = torch.randint(0, 256, (1, kv_heads, tokens // 16, size), dtype=torch.uint8, device="cuda")
        scales = torch.rand(1, kv_heads, tokens, device="cuda").to(torch.float16) + 0.5
        return PackedStates(codes, scales, bits, chain_tables(bits, 2), signs)

    sides = [(states(), states()) for _ in range(count)]
    return [
        lambda keys=keys, values=values: decode_attention(q, keys, values, lengths, scaling=d**-0.5)
        for keys, values in sides
    ]


def _microseconds(calls: Calls, repeats: int) -> float:
    """Median time of one call within a graph of all of them."""
    import torch

    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_ROUNDS):
            for call in calls:
                call()
    times = []
    for _ in range(3 + max(5, repeats)):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / (_ROUNDS * len(calls)))
    return median(times[3:])
