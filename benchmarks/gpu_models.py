"""Decoding speed, memory and capacity of whole models of random weights, packed cache against bfloat16 ones.

    python benchmarks/gpu_models.py --model qwen3.6-27b --cells 1x32768,8x65536 --out benchmarks/results

A cell is a batch and a context. Its caches are filled with random codes, or random states, at once instead of by a
prompt of that length; only the prompt of a few hundred tokens that sets the caches up is run. A step takes one token a
row through the whole model. Methods:

- dynamic: transformers' `DynamicCache`, run step by step as `generate` does.
- static: transformers' `StaticCache`, a step captured in a CUDA graph.
- flash, cudnn, split: bfloat16 states in memory allocated once, read without a mask by that backend of PyTorch's
  attention or by the split kernel of `gpu_attention.py`, a step captured in a CUDA graph. The step always puts its
  token in the last place, so nothing is spent on anything else.
- packed: `TurboQuantCache` of fixed capacity, a step captured in a CUDA graph; packed eager: the same without a graph.
- packed growing: `TurboQuantCache` without a capacity, step by step.

With --compile the model is compiled for the methods whose step is captured, by `torch.compile`.

Beside each cell stands `ideal`: the time that reading the weights and the states once takes at the bandwidth of a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from random_models import MODELS, PLAIN, Bench, random_model
from tqkv import TurboQuantCache

_METHODS = ("dynamic", "static", *PLAIN, "packed", "packed eager", "packed growing")


@contextlib.contextmanager
def cell() -> Iterator[dict[str, Any]]:
    """A row of results that says so where memory does not suffice or a method does not apply; memory is given back."""
    row: dict[str, Any] = {}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield row
    except torch.OutOfMemoryError:
        row["skipped"] = "out of memory"
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        row["skipped"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    release()


def release() -> None:
    """Give unused memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Median time of a call, each waited for."""
    times = []
    for _ in range(steps + 2):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def decode_step(bench: Bench, method: str, batch: int, tokens: int, cache: Cache) -> Callable[[], Any]:
    """One step on a filled cache: captured in a graph for the methods that say so, where there is a device."""
    token = torch.randint(2, bench.model.config.vocab_size, (batch, 1), device=bench.device)
    position = torch.full((batch, 1), tokens, device=bench.device)

    eager = method in ("dynamic", "packed eager", "packed growing")
    model = bench.model if eager else bench.compiled()

    def step() -> torch.Tensor:
        return bench.forward(cache, token, position, model)

    if eager or bench.device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def speed(bench: Bench, method: str, batch: int, tokens: int) -> dict[str, Any]:
    """Tokens per second of a method on a cell, and the bytes allocated beside the weights."""
    with cell() as row:
        before = torch.cuda.memory_allocated() if bench.device.type == "cuda" else 0
        if method.startswith("packed"):
            room = None if method == "packed growing" else 4 * bench.steps + 64
            cache: Cache = bench.packed_cache(batch, tokens, room)
        else:
            cache = bench.plain_cache(method, batch, tokens)
        if bench.device.type == "cuda":
            row["cache_bytes"] = torch.cuda.memory_allocated() - before
        step = decode_step(bench, method, batch, tokens, cache)
        time_of_step = seconds(step, bench.steps, bench.device)
        row |= {"ms": time_of_step * 1e3, "tokens_per_second": batch / time_of_step}
        if isinstance(cache, TurboQuantCache) and cache.stats.fallback and bench.device.type == "cuda":
            raise RuntimeError(f"{cache.stats.fallback} attention calls decoded their states")
    return row


def peaks(bench: Bench, tokens: int) -> dict[str, Any]:
    """Peak bytes beside the weights, of a real prompt of `tokens` and of steps after it, with both growing caches."""
    result = {}
    for method in ("dynamic", "packed"):
        with cell() as row:
            bench.attend_with("sdpa" if method == "dynamic" else "turboquant")
            config = bench.model.config
            cache = (
                DynamicCache(config=config)
                if method == "dynamic"
                else TurboQuantCache(config, bits=bench.bits)
            )
            weights = torch.cuda.memory_allocated()
            start = time.perf_counter()
            bench.prompt(cache, 1, tokens)
            synchronize(bench.device)
            row["prefill_seconds"] = time.perf_counter() - start
            row["prefill_peak_bytes"] = torch.cuda.max_memory_allocated() - weights
            torch.cuda.reset_peak_memory_stats()
            step = decode_step(bench, "dynamic", 1, tokens, cache)
            for _ in range(4):
                step()
            synchronize(bench.device)
            row["decode_peak_bytes"] = torch.cuda.max_memory_allocated() - weights
            row["held_bytes"] = torch.cuda.memory_allocated() - weights
            if isinstance(cache, TurboQuantCache):
                row["packed_layers"] = cache.memory()
            cache = step = None  # the next method starts without it
        result[method] = row
    return result


def capacity(bench: Bench, method: str, resolution: float) -> dict[str, Any]:
    """The longest context of one row that a step runs on, found by halving."""
    per_token = bench.bytes_of_token * (bench.packed_share if method == "packed" else 1.0)
    free = torch.cuda.mem_get_info()[0]
    low, high, tries = 0, int(free / per_token * 1.02), 0
    context = int(free / per_token * 0.9)
    while high - low > resolution * high and tries < 8:
        tries += 1
        with cell() as row:
            if method == "packed":
                cache: Any = bench.packed_cache(1, context, 64)
            else:
                cache = bench.plain_cache("flash", 1, context)
            decode_step(bench, "packed eager", 1, context, cache)()
            synchronize(bench.device)
        cache = None
        release()
        if "skipped" in row and row["skipped"] != "out of memory":
            return row
        low, high = (low, context) if row else (context, high)
        context = (low + high) // 2
    return {"tokens": low, "does_not_fit": high, "bytes_free_before": free, "tries": tries}


def main() -> None:
    """Measure a model and, with --out, write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="qwen3-8b")
    parser.add_argument(
        "--cells", default="1x32768,8x32768", help="batch x context, comma-separated; may be empty"
    )
    parser.add_argument(
        "--methods", default=",".join(_METHODS), help=f"comma-separated, of {', '.join(_METHODS)}"
    )
    parser.add_argument("--bits", type=float, default=3.5)
    parser.add_argument("--bandwidth", type=float, default=4300, help="GB/s that ideal times are for")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--prompt", type=int, default=0, help="tokens of a real prompt whose peak memory is taken"
    )
    parser.add_argument("--capacity", action="store_true", help="find the longest context that fits")
    parser.add_argument(
        "--compile",
        choices=("default", "max-autotune-no-cudagraphs"),
        help="compile the model in this mode for the methods whose step is captured",
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU where there is no GPU")
    parser.add_argument("--out", help="folder of the record")
    parser.add_argument("--name", help="of the record; gpu-model-MODEL if not given")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not options.tiny:
        parser.error("a whole model needs a CUDA device; --tiny runs without one")
    methods = options.methods.split(",")
    if unknown := sorted(set(methods) - set(_METHODS)):
        parser.error(f"--methods must be of {', '.join(_METHODS)}, got {', '.join(unknown)}")
    start = time.perf_counter()
    model = random_model(options.model, options.tiny, device)
    bench = Bench(model, options.bits, options.steps, options.compile)
    synchronize(device)
    parameters = sum(x.numel() for x in bench.model.parameters())
    print(f"{options.model}: {parameters / 1e9:.2f} G parameters, {time.perf_counter() - start:.1f} s")
    results: dict[str, Any] = {"model": options.model, "parameters": parameters, "cells": []}
    for text in filter(None, options.cells.split(",")):
        batch, tokens = (int(n) for n in text.split("x"))
        rows = {}
        for method in methods:
            rows[method] = row = speed(bench, method, batch, tokens)
            shown = row.get("skipped") or f"{row['ms']:8.2f} ms  {row['tokens_per_second']:8.1f} tokens/s"
            print(f"  {batch} x {tokens} {method:15s} {shown}", flush=True)
        ideal = {
            name: bench.bytes_of_step(batch, tokens, share) / options.bandwidth / 1e6
            for name, share in (("bfloat16", 1.0), ("packed", bench.packed_share))
        }
        print("  ideal " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in ideal.items()), flush=True)
        results["cells"].append({"batch": batch, "tokens": tokens, "methods": rows, "ideal_ms": ideal})
    if options.prompt and device.type == "cuda":
        results["prompt"] = {"tokens": options.prompt, **peaks(bench, options.prompt)}
        for method in ("dynamic", "packed"):
            row = results["prompt"][method]
            parts = (f"{key} {value / 2**20:.0f} MiB" for key, value in row.items() if key.endswith("bytes"))
            print(f"  prompt of {options.prompt}, {method}: {row.get('skipped') or ', '.join(parts)}")
    if options.capacity and device.type == "cuda":
        results["capacity"] = {name: capacity(bench, name, 0.02) for name in ("bfloat16", "packed")}
        for name, row in results["capacity"].items():
            print(f"  capacity {name}: {row.get('skipped') or row['tokens']}", flush=True)
    if options.out:
        from tqbench.records import new_record, write_record

        settings = {
            "bits": options.bits,
            "compiled": options.compile,
            "steps": options.steps,
            "bandwidth_gb_s": options.bandwidth,
            "weights": "normal(0, 0.02)",
            "caches": "filled with random codes or states; the prompt that sets them up has 256 tokens",
        }
        gpu = {"name": "none"}
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(0)
            gpu = {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "torch": torch.__version__,
            }
        record = new_record("gpu-model", settings=settings, device=gpu, results=results)
        print(write_record(record, options.out, options.name or f"gpu-model-{options.model}"))


if __name__ == "__main__":
    main()
