"""Time of a decode step's attention on a CUDA device: packed keys and values against bfloat16 ones.

    python benchmarks/gpu_attention.py --heads 24,4,256 --tokens 8192,32768 --bits 2,3.5 --out benchmarks/results

A case is one query a head over `tokens` cached tokens. Every method runs in a CUDA graph of launches that go through
as many copies of its data as exceed the L2 cache; the median over replays, divided by the launches, is its time. The
bfloat16 methods are PyTorch's attention with each backend that takes the case, in two forms (`enable_gqa`, and the
queries of a group as the queries of one head), its flex attention, and a split kernel of our own design over plain
bfloat16 states (`tqbench/kv/bf16_decode.cu`).

Beside each time of the packed kernel stand three that it cannot beat, `limits`: its bytes at the bandwidth of a copy,
its instructions of integers at two a cycle, and all its instructions at four, both of the main loop alone and with no
multiprocessor idle.
"""

from __future__ import annotations

import argparse
import math
import warnings
from typing import Any

import torch

from tqbench.kv.decode_timing import copies, microseconds, packed_calls, plain_methods

_CASE: tuple[str, ...] = "heads", "kv_heads", "d", "batch", "tokens"
# Warp instructions of the main loops for 16 tokens, keys and values: those of the integer unit, two of which a
# multiprocessor issues in a cycle, and all. Counted in sm_90 code of CUDA 13.0 for bfloat16 states without the branches
# that raise the maximum, by head_dim, queries of a block and bits.
_INSTRUCTIONS: dict[tuple[int, int], dict[float, tuple[int, int]]] = {
    (64, 4): {2: (134, 271), 2.5: (152, 295), 3: (144, 282), 3.5: (163, 311), 4: (144, 279)},
    (64, 8): {2: (148, 320), 2.5: (172, 347), 3: (164, 331), 3.5: (180, 364), 4: (160, 338)},
    (128, 4): {2: (220, 396), 2.5: (240, 408), 3: (242, 413), 3.5: (256, 429), 4: (255, 429)},
    (128, 8): {2: (245, 462), 2.5: (254, 453), 3: (255, 463), 3.5: (269, 478), 4: (273, 485)},
    (256, 4): {2: (400, 652), 2.5: (432, 672), 3: (435, 682), 3.5: (458, 709), 4: (456, 724)},
    (256, 8): {2: (420, 742), 2.5: (449, 752), 3: (454, 762), 3.5: (473, 780), 4: (474, 800)},
}


def limits(case: dict[str, int], bits: float, nbytes: int, options: argparse.Namespace) -> dict[str, float]:
    """Microseconds that bytes, integers and all instructions take at least."""
    queries = 4 if case["heads"] <= 4 * case["kv_heads"] else 8
    integers, instructions = _INSTRUCTIONS[case["d"], queries][bits]
    tiles = case["batch"] * case["kv_heads"] * case["tokens"] / 16
    cycles = options.clock * 1e3 * torch.cuda.get_device_properties(0).multi_processor_count
    return {
        "bytes": nbytes / options.bandwidth / 1e3,
        "integers": tiles * integers / 2 / cycles,
        "instructions": tiles * instructions / 4 / cycles,
    }


def measure(case: dict[str, int], rates: list[float], options: argparse.Namespace) -> dict[str, Any]:
    """Times of all methods on a case."""
    batch, heads, kv_heads, d, tokens = (case[name] for name in ("batch", "heads", "kv_heads", "d", "tokens"))
    result: dict[str, Any] = {**case, "bf16": {}, "packed": {}}
    shape = (batch, kv_heads, tokens, d)
    nbytes = 4 * math.prod(shape)
    q = torch.randn(batch, heads, 1, d, device="cuda", dtype=torch.bfloat16)
    states = [
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        for _ in range(copies(nbytes))
    ]
    truth = None
    for name, method in () if options.no_plain else plain_methods(case, options.flex):
        try:
            output = method(q, *states[0]).reshape(q.shape).float()
            truth = output if truth is None else truth
            calls = [lambda k=k, v=v, method=method: method(q, k, v) for k, v in states]
            row = {
                "us": microseconds(calls, options.replays),
                "difference": float((output - truth).norm() / truth.norm()),
            }
        except RuntimeError as error:
            row = {"skipped": str(error).splitlines()[0][:200]}
        result["bf16"][name] = row
    del states
    timed = {name: row["us"] for name, row in result["bf16"].items() if "us" in row}
    best = min(timed.values(), default=math.nan)
    line = ", ".join(f"{name} {us:.1f}" for name, us in sorted(timed.items(), key=lambda item: item[1]))
    print(f"{heads}/{kv_heads} x {d}, batch {batch}, {tokens} tokens: bf16 us: {line}", flush=True)
    for name, row in result["bf16"].items():
        if "skipped" in row:
            print(f"  {name}: {row['skipped']}", flush=True)
    for bits in rates:
        calls, read = packed_calls(case, bits, options.window)
        us = microseconds(calls, options.replays)
        least = limits(case, bits, read, options)
        result["packed"][f"{bits:g}"] = {"us": us, "bytes": read, "limits": least}
        print(
            f"  {bits:g} bits: {us:8.1f} us  ratio {best / us:5.2f}  {read / us / 1e3:7.0f} GB/s  "
            f"{read / us / 1e3 / options.bandwidth:4.0%}  at least "
            + ", ".join(f"{time:.1f} us of {name}" for name, time in least.items()),
            flush=True,
        )
    return result


def numbers(text: str) -> list[float]:
    """Comma-separated numbers."""
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Measure every case and, with --out, write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", action="append", help="heads,kv_heads,head_dim; may be repeated")
    parser.add_argument("--tokens", type=numbers, default=[8192, 32768, 131072, 262144])
    parser.add_argument("--batches", type=numbers, default=[1])
    parser.add_argument("--bits", type=numbers, default=[2, 2.5, 3, 3.5, 4])
    parser.add_argument(
        "--window", type=int, default=0, help="tokens in full precision beside the packed ones"
    )
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--bandwidth", type=float, default=4300, help="GB/s that shares are of")
    parser.add_argument(
        "--clock", type=float, default=1.9, help="GHz of the multiprocessors that limits are for"
    )
    parser.add_argument("--flex", action="store_true", help="compile and time flex attention too")
    parser.add_argument("--no-plain", action="store_true", help="only the packed kernel")
    parser.add_argument("--out", help="folder of the record")
    parser.add_argument("--name", default="gpu-attention")
    options = parser.parse_args()
    # PyTorch warns of every backend that does not take a case; the rows say so.
    warnings.simplefilter("ignore")
    results = []
    for heads in options.heads or ["24,4,256", "32,8,128"]:
        for batch in options.batches:
            for tokens in options.tokens:
                sizes = [*(int(n) for n in numbers(heads)), int(batch), int(tokens)]
                case: dict[str, int] = dict(zip(_CASE, sizes, strict=True))
                results.append(measure(case, options.bits, options))
                torch.cuda.empty_cache()
    if options.out:
        from tqbench.records import new_record, write_record

        settings = {
            "replays": options.replays,
            "window": options.window,
            "bandwidth_gb_s": options.bandwidth,
            "clock_ghz": options.clock,
        }
        gpu = torch.cuda.get_device_properties(0)
        device = {"name": gpu.name, "multiprocessors": gpu.multi_processor_count, "torch": torch.__version__}
        record = new_record("gpu-attention", settings=settings, device=device, results=results)
        print(write_record(record, options.out, options.name))


if __name__ == "__main__":
    main()
