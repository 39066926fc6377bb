"""Times of the index on one CUDA device beside torch's bf16 product, with recall, as a JSON record.

python benchmarks/gpu_index.py --n 1000000 --d 768 --bits 4 --out benchmarks/results
python benchmarks/gpu_index.py --scale --out benchmarks/results --name gpu-index-scale
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from tqann import TurboQuantIndex
from tqbench.on_device import milliseconds

_CHUNK = 1 << 18


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--bits", type=float, default=4)
    parser.add_argument("--memory", type=int, default=2)
    parser.add_argument("--metric", default="ip", choices=("ip", "l2", "cosine"))
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--nq", type=int, nargs="+", default=[1, 8, 100, 1000, 10_000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--recall-queries", type=int, default=100, help="compared with exact search; 0 for none"
    )
    parser.add_argument("--baseline", action="store_true", help="time torch's bf16 product and topk as well")
    parser.add_argument(
        "--scale",
        action="store_true",
        help="100 million vectors at 2 bits, searched with 1, 100 and 1,000 queries",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder of the record")
    parser.add_argument("--name", default="gpu-index")
    options = parser.parse_args()
    if options.scale:
        options.n, options.bits, options.nq, options.repeats = 100_000_000, 2.0, [1, 100, 1000], 3
    return options


def chunk(options: argparse.Namespace, number: int) -> torch.Tensor:
    """Rows `number * _CHUNK` and on of the base, N(0, 1), the same in every pass."""
    generator = torch.Generator("cuda").manual_seed(options.seed * 1_000_003 + number)
    rows = min(_CHUNK, options.n - number * _CHUNK)
    return torch.randn(rows, options.d, device="cuda", generator=generator)


def exact(options: argparse.Namespace, queries: torch.Tensor) -> torch.Tensor:
    """Ids int64 [nq, k] of the best base vectors by float32 products."""
    best, names = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for number in range(-(-options.n // _CHUNK)):
        base = chunk(options, number)
        scores = queries @ base.T
        if options.metric == "cosine":
            scores /= base.norm(dim=1)
        if options.metric == "l2":
            scores -= 0.5 * base.square().sum(dim=1)
        values, found = scores.topk(min(options.k, len(base)), dim=1)
        found = found + number * _CHUNK
        if number:
            values, found = torch.cat([best, values], 1), torch.cat([names, found], 1)
        best, at = values.topk(min(options.k, values.shape[1]), dim=1)
        names = found.gather(1, at)
    return names


def measure(options: argparse.Namespace) -> dict[str, Any]:
    index = TurboQuantIndex(
        options.d, options.bits, options.metric, memory=options.memory, seed=options.seed, device="cuda"
    )
    index.add(chunk(options, 0)[:64])  # compiles
    index.reset()
    torch.cuda.reset_peak_memory_stats()
    adding = 0.0
    for number in range(-(-options.n // _CHUNK)):
        base = chunk(options, number)
        torch.cuda.synchronize()
        start = time.perf_counter()
        index.add(base)
        torch.cuda.synchronize()
        adding += time.perf_counter() - start
    generator = torch.Generator("cuda").manual_seed(options.seed + 12345)
    queries = torch.randn(max(options.nq), options.d, device="cuda", generator=generator)
    results: dict[str, Any] = {
        "add_vectors_per_second": options.n / adding,
        "index_bytes": index.nbytes(),
        "bytes_per_vector": index.code_size,
        "add_peak_device_bytes": torch.cuda.max_memory_allocated(),
        "search": [],
    }
    for nq in options.nq:
        q = queries[:nq]
        times = milliseconds(lambda q=q: index.search(q, options.k), options.repeats)
        median = statistics.median(times)
        results["search"].append(
            {
                "nq": nq,
                "milliseconds": times,
                "median_ms": median,
                "queries_per_second": nq / median * 1e3,
                "code_bytes_per_second": options.n * index.code_size / median * 1e3,
                "product_flops_per_second": 2 * options.n * options.d * nq / median * 1e3,
            }
        )
        print(f"nq {nq}: {median:.3f} ms, {nq / median * 1e3:,.0f} queries/s", flush=True)
    results["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    if options.recall_queries:
        q = queries[: options.recall_queries]
        truth, found = exact(options, q), index.search(q, options.k)[1]
        hits = (found[:, :, None] == truth[:, None, :]).any(dim=2).float().mean()
        results["recall_k_at_k"] = float(hits)
        results["recall_queries"] = len(q)
    if options.baseline:
        results["torch_bf16"] = baseline(options, queries)
    return results


def limits() -> dict[str, float]:
    """What the card does at most: bytes read and written by a large copy, and a bfloat16 product, a second."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = statistics.median(milliseconds(lambda: target.copy_(source), 7))
    side = 8192
    a, b = (torch.randn(side, side, device="cuda").bfloat16() for _ in range(2))
    multiplied = statistics.median(milliseconds(lambda: a @ b, 7))
    return {
        "copy_bytes_per_second": 2 * source.nbytes / copied * 1e3,
        "bf16_flops_per_second": 2 * side**3 / multiplied * 1e3,
    }


def baseline(options: argparse.Namespace, queries: torch.Tensor) -> list[dict[str, Any]]:
    """A bf16 copy of the base, its product with the queries, and topk, 512 queries at a time."""
    base = torch.cat([chunk(options, i).bfloat16() for i in range(-(-options.n // _CHUNK))])
    out = []
    for nq in options.nq:
        q = queries[:nq].bfloat16()

        def call(q: torch.Tensor = q) -> None:
            for part in q.split(512):
                torch.topk(part @ base.T, options.k, dim=1)

        median = statistics.median(milliseconds(call, min(3, options.repeats)))
        out.append({"nq": nq, "median_ms": median, "queries_per_second": nq / median * 1e3})
        print(f"torch bf16 nq {nq}: {median:.3f} ms", flush=True)
    return out


def main() -> None:
    options = parse()
    results = measure(options)
    results["limits"] = limits()
    if options.out:
        from tqbench.records import new_record, write_record

        settings = {key: value for key, value in vars(options).items() if key not in ("out", "name")}
        gpu = torch.cuda.get_device_properties(0)
        device = {"name": gpu.name, "multiprocessors": gpu.multi_processor_count, "torch": torch.__version__}
        print(
            write_record(
                new_record("gpu-index", settings=settings, device=device, results=results),
                options.out,
                options.name,
            )
        )
    print({key: value for key, value in results.items() if key != "search"})


if __name__ == "__main__":
    main()
