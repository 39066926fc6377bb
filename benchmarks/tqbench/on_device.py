"""`tq bench ann` and `speed` with `--device cuda`: ours, faiss-gpu's and torch's bfloat16 product."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from statistics import median
from typing import TYPE_CHECKING, Any

from .errors import BenchError, Unavailable
from .progress import progress_bar
from .records import new_record
from .sources import SourceOptions, load_source

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "DEVICE_METHODS",
    "compare",
    "milliseconds",
    "print_device_record",
    "require_device",
    "run_device_ann",
]

_ADD_ROWS = 1 << 18
_BATCHES = (1, 100, 10_000)

# name -> (label, adapter, arguments, the bits it is run at, None for those asked for)
DEVICE_METHODS: dict[str, tuple[str, str, dict[str, Any], float | None]] = {
    "chain": ("tqann chain", "DeviceOurs", {}, None),
    "torch": ("torch bfloat16 product", "DeviceProduct", {}, 16),
    "flat": ("faiss-gpu Flat float32", "DeviceFaiss", {"kind": "flat32"}, 32),
    "flat16": ("faiss-gpu Flat float16", "DeviceFaiss", {"kind": "flat16"}, 16),
    "ivf-pq": ("faiss-gpu IVF-PQ", "DeviceFaiss", {"kind": "ivf-pq"}, None),
    "ivf-sq": ("faiss-gpu IVF-SQ", "DeviceFaiss", {"kind": "ivf-sq"}, None),
}


def require_device() -> Any:
    """The module torch, on a machine where it finds a CUDA device.

    Raises
    ------
    BenchError
        Otherwise, with what is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise BenchError('--device cuda needs torch with CUDA (pip install "tqann[gpu]")') from error
    if not torch.cuda.is_available():
        raise BenchError(
            f"--device cuda needs a CUDA device and a CUDA build of torch; torch {torch.__version__} finds none"
        )
    return torch


def milliseconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """Times of `call` by events of the device, after two calls to warm up; they hold the host's work as well."""
    import torch

    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times


def _truth(torch: Any, base: Any, queries: Any, k: int, metric: str) -> Any:
    """Ids int64 [nq, k] by products in float32 on the device."""
    best, names = None, None
    for start in range(0, len(base), _ADD_ROWS):
        rows = base[start : start + _ADD_ROWS]
        scores = queries @ rows.T
        if metric == "l2":
            scores -= 0.5 * rows.square().sum(dim=1)
        values, found = scores.topk(min(k, len(rows)), dim=1)
        found += start
        if best is not None:
            values, found = torch.cat([best, values], 1), torch.cat([names, found], 1)
        best, at = values.topk(min(k, values.shape[1]), dim=1)
        names = found.gather(1, at)
    return names


def compare(
    base: Any,
    queries: Any,
    metric: str,
    *,
    methods: tuple[str, ...],
    bits: tuple[float, ...],
    k: int,
    repeats: int,
    sizes: tuple[int, ...] = _BATCHES,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Rows of results: every method at its widths, inverted lists at every number of probes.

    Parameters
    ----------
    base, queries : torch.Tensor
        float32 [n, d] and [nq, d] on the device, of length 1 for cosine.
    metric : str
        "l2", "ip" or "cosine".
    methods, bits, k, repeats
        As `run_device_ann` takes them.
    sizes : tuple of int
        Numbers of queries a call; those above nq stand for all of them.
    report : callable
        Called as report(what, steps done, steps in all).
    """
    import torch

    from .adapters import device as adapters

    n, d = base.shape
    asked = queries[:1000]
    truth = _truth(torch, base, asked, k, metric)
    counts = sorted({min(nq, len(queries)) for nq in sizes})
    cases: list[tuple[str, float]] = []
    for name in methods:
        own = DEVICE_METHODS[name][3]
        cases += [(name, width) for width in (bits if own is None else (own,))]
    rows: list[dict[str, Any]] = []
    for done, (name, width) in enumerate(cases):
        label, adapter, options, _ = DEVICE_METHODS[name]
        report(f"{label} {width:g} bits", done, len(cases))
        identity = {"method": name, "label": label, "bits": float(width)}
        try:
            index = getattr(adapters, adapter)(d, width, metric, n, **options)
            torch.cuda.synchronize()
            start = time.perf_counter()
            index.train(base)
            torch.cuda.synchronize()
            trained = time.perf_counter()
            for first in range(0, n, _ADD_ROWS):
                index.add(base[first : first + _ADD_ROWS])
            torch.cuda.synchronize()
            added = time.perf_counter()
            for probes in index.probes:
                if probes is not None:
                    index.probe(probes)
                found = index.search(asked, k)
                hits = (found[:, :, None] == truth[:, None, :]).any(dim=2).float().mean()
                times = {
                    nq: milliseconds(lambda q=queries[:nq], i=index: i.search(q, k), repeats) for nq in counts
                }
                rows.append(
                    {
                        **identity,
                        "status": "ok",
                        "probes": probes,
                        "bytes_per_vector": index.bytes_per_vector,
                        "train_seconds": trained - start,
                        "add_seconds": added - trained,
                        f"recall_{k}_at_{k}": float(hits),
                        "milliseconds": {str(nq): median(t) for nq, t in times.items()},
                    }
                )
            del index
        except (Unavailable, torch.cuda.OutOfMemoryError) as reason:
            rows.append({**identity, "status": "skipped", "reason": str(reason).splitlines()[0]})
        torch.cuda.empty_cache()
    return rows


def run_device_ann(
    source: str,
    options: SourceOptions,
    *,
    methods: tuple[str, ...] = (),
    bits: tuple[float, ...] = (),
    k: int = 10,
    repeats: int = 5,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compare methods on one source and return the record of suite "ann-cuda".

    Raises
    ------
    BenchError
        Without a CUDA device, and for an option outside its rules.
    """
    unknown = [name for name in methods if name not in DEVICE_METHODS]
    if unknown:
        raise BenchError(
            f"methods must be among {', '.join(DEVICE_METHODS)} with --device cuda, got {', '.join(unknown)}"
        )
    torch = require_device()
    data = load_source(source, options).prepared()
    if not 1 <= k <= len(data.base):
        raise BenchError(f"k must be from 1 to the {len(data.base)} base vectors, got {k}")
    base, queries = (torch.from_numpy(x).cuda() for x in (data.base, data.queries))
    with progress_bar(quiet) as bar:
        task = bar.add_task("tq bench ann --device cuda", total=None, detail="")
        rows = compare(
            base,
            queries,
            data.metric,
            methods=methods or tuple(DEVICE_METHODS),
            bits=bits,
            k=k,
            repeats=repeats,
            report=lambda what, done, total: bar.update(task, completed=done, total=total, detail=what),
        )
    return new_record(
        "ann-cuda",
        dataset={
            "name": data.name,
            "description": data.description,
            "n": len(data.base),
            "nq": len(data.queries),
            "d": data.d,
            "metric": data.metric,
        },
        settings={"k": k, "repeats": repeats, "bits": list(bits), "seed": options.seed},
        device=_device(torch),
        results=rows,
    )


def _device(torch: Any) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
    }


def run_device_speed(
    *,
    n: tuple[int, ...] = (),
    d: tuple[int, ...] = (),
    nq: tuple[int, ...] = (),
    bits: tuple[float, ...] = (),
    k: tuple[int, ...] = (),
    repeats: int = 5,
    seed: int = 0,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Speed in a grid of sizes, on directions drawn evenly: a record of suite "ann-cuda" for each n, d and k.

    Defaults are 100,000 and 1,000,000 vectors of 768 dimensions, 1, 100 and 10,000 queries, 2 and 4 bits, k = 10.

    Raises
    ------
    BenchError
        Without a CUDA device.
    """
    torch = require_device()
    records = []
    for rows, dims, results in product(n or (100_000, 1_000_000), d or (768,), k or (10,)):
        generator = torch.Generator("cuda").manual_seed(seed)
        base = torch.nn.functional.normalize(torch.randn(rows, dims, device="cuda", generator=generator))
        queries = torch.nn.functional.normalize(
            torch.randn(max(nq or _BATCHES), dims, device="cuda", generator=generator)
        )
        with progress_bar(quiet) as bar:
            task = bar.add_task(f"tq bench speed --device cuda, {rows:,} x {dims}", total=None, detail="")
            found = compare(
                base,
                queries,
                "ip",
                methods=("chain", "torch", "flat", "flat16"),
                bits=bits or (2.0, 4.0),
                k=results,
                repeats=repeats,
                sizes=tuple(sorted(nq)) or _BATCHES,
                report=lambda what, done, total, bar=bar, task=task: bar.update(
                    task, completed=done, total=total, detail=what
                ),
            )
        records.append(
            new_record(
                "ann-cuda",
                dataset={
                    "name": f"directions-{rows}",
                    "description": "directions drawn evenly, on the device",
                    "n": rows,
                    "nq": len(queries),
                    "d": dims,
                    "metric": "ip",
                },
                settings={"k": results, "repeats": repeats, "bits": list(bits or (2.0, 4.0)), "seed": seed},
                device=_device(torch),
                results=found,
            )
        )
        del base, queries
    return records


def print_device_record(record: dict[str, Any], console: Console) -> None:
    """Print the rows as one table: recall, bytes, and milliseconds for every number of queries."""
    from rich.table import Table

    data, k = record["dataset"], record["settings"]["k"]
    console.print(
        f"{data['name']}: {data['n']:,} x {data['d']}, metric {data['metric']}, k = {k}, {record['device']['name']}"
    )
    done = [row for row in record["results"] if row["status"] == "ok"]
    sizes = list(done[0]["milliseconds"]) if done else []
    table = Table(pad_edge=False)
    for heading in (
        "method",
        "bits",
        "probes",
        "B/vec",
        f"{k}@{k}",
        "train s",
        "add s",
        *(f"{s} q, ms" for s in sizes),
    ):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in done:
        table.add_row(
            row["label"],
            f"{row['bits']:g}",
            str(row["probes"] or ""),
            f"{row['bytes_per_vector']:.0f}",
            f"{row[f'recall_{k}_at_{k}']:.3f}",
            f"{row['train_seconds']:.2f}",
            f"{row['add_seconds']:.2f}",
            *(f"{row['milliseconds'][s]:.3f}" for s in sizes),
        )
    console.print(table)
    for row in record["results"]:
        if row["status"] != "ok":
            console.print(f"[dim]{row['label']} at {row['bits']:g} bits: {row['reason']}[/]")
