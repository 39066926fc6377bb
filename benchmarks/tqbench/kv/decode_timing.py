"""One decode step's attention on a CUDA device: calls that can be timed, of the packed kernel and of its rivals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tqcore.gpu.rtc import compile_module
from tqkv.kernels.decode import PackedStates, decode_attention
from tqkv.layout import PackedLayout
from tqkv.tables import byte_tables

__all__ = ["copies", "microseconds", "packed_calls", "plain_methods", "split_attention"]

_BEYOND_L2 = 256 << 20  # bytes that the copies of a method's data exceed
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_SPLIT_WARPS = 8


def microseconds(calls: list[Callable[[], Any]], replays: int) -> float:
    """Median time of one call in a graph that makes all `calls`, three rounds of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            for call in calls:
                call()
    times = []
    for _ in range(replays + 3):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / (3 * len(calls)))
    return statistics.median(times[3:])


def copies(nbytes: int) -> int:
    """How many copies of `nbytes` exceed the L2 cache well."""
    return max(2, -(-_BEYOND_L2 // nbytes))


def packed_calls(case: dict[str, int], bits: float, window: int) -> tuple[list[Callable[[], Any]], int]:
    """Calls of the packed kernel and the bytes of codes and scales that each reads."""
    batch, heads, kv_heads, d, tokens = (case[name] for name in ("batch", "heads", "kv_heads", "d", "tokens"))
    q = torch.randn(batch, heads, 1, d, device="cuda", dtype=torch.bfloat16)
    lengths = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
    signs = torch.randint(0, 2, (3, d), device="cuda") * 2.0 - 1.0
    extra = torch.randn(2, batch, kv_heads, max(window, 1), d, device="cuda", dtype=torch.bfloat16)
    options = {"extra_k": extra[0], "extra_v": extra[1]} if window else {}
    size = PackedLayout(d, bits, "key").tile_bytes
    nbytes = 2 * batch * kv_heads * (tokens // 16 * size + 2 * tokens)

    def states() -> PackedStates:
        shape = (batch, kv_heads, tokens // 16, size)
        codes = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
        scales = torch.rand(batch, kv_heads, tokens, device="cuda").to(torch.float16) + 0.5
        return PackedStates(codes, scales, bits, byte_tables("chain", d, bits), signs)

    sides = [(states(), states()) for _ in range(copies(nbytes))]
    calls = [
        lambda keys=keys, values=values: decode_attention(
            q, keys, values, lengths, scaling=d**-0.5, **options
        )
        for keys, values in sides
    ]
    return calls, nbytes


@torch.compiler.disable
def split_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention [batch, heads, 1, d] by the split kernel over bfloat16 states."""
    batch, heads, _, d = q.shape
    kv_heads, tokens = k.shape[1:3]
    pairs = batch * kv_heads
    multiprocessors = torch.cuda.get_device_properties(q.device).multi_processor_count
    splits = max(1, min(multiprocessors // pairs, tokens // 16))
    source = Path(__file__).with_name("bf16_decode.cu").read_text()
    kernel = compile_module(source, (f"-DHEAD_DIM={d}", f"-DWARPS={_SPLIT_WARPS}")).kernel("decode")
    sums = torch.empty(pairs, splits, 8, d, device=q.device)
    scalars = torch.empty(pairs, splits, 8, 2, device=q.device)
    out = torch.empty_like(q)
    if pairs not in _counters:
        _counters[pairs] = torch.zeros(pairs, dtype=torch.int32, device=q.device)
    shared = _SPLIT_WARPS * 8 * (d + 24) * 4 + 4096
    arguments = (
        q,
        k,
        v,
        out,
        sums,
        scalars,
        _counters[pairs],
        heads // kv_heads,
        tokens,
        d**-0.5 / math.log(2),
    )
    kernel((pairs, splits), (_SPLIT_WARPS * 32,), arguments, shared)
    return out


_counters: dict[int, torch.Tensor] = {}


def plain_methods(case: dict[str, int], flex: bool) -> Iterable[tuple[str, Callable[..., Any]]]:
    """Names and functions of (q, k, v) that attend to bfloat16 states."""
    attention = torch.nn.functional.scaled_dot_product_attention
    batch, heads, kv_heads, d = (case[name] for name in ("batch", "heads", "kv_heads", "d"))

    def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q.view(batch, kv_heads, heads // kv_heads, d), k, v)

    def gqa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, enable_gqa=True)

    for name, backend in _BACKENDS.items():
        for form, function in (("gqa", gqa), ("grouped", grouped)):

            def method(*states: torch.Tensor, _function: Any = function, _backend: Any = backend) -> Any:
                with sdpa_kernel(_backend):
                    return _function(*states)

            yield f"{name} {form}", method
    yield "split", split_attention
    if flex:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention, noop_mask

        # Compiled anew for every case, of which there may be more than a function is compiled for by default. Without
        # a mask of blocks its decoding kernel takes all tokens for one block, which it does not split.
        torch.compiler.reset()
        compiled = torch.compile(flex_attention, dynamic=False)
        group, tokens = heads // kv_heads, case["tokens"]
        masks = {n: create_block_mask(noop_mask, None, None, n, tokens, device="cuda") for n in (1, group)}
        yield "flex gqa", lambda q, k, v: compiled(q, k, v, block_mask=masks[1], enable_gqa=True)
        yield (
            "flex grouped",
            lambda q, k, v: compiled(q.view(batch, kv_heads, group, d), k, v, block_mask=masks[group]),
        )
