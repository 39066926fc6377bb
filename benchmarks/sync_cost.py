"""What it costs to keep a file in step with a large index, beside writing it whole, as a JSON record.

python benchmarks/sync_cost.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tqann import TurboQuantIndex, read_index
from tqbench.records import new_record, write_record

CHUNK = 50_000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--d", type=int, default=384)
    parser.add_argument("--bits", type=float, default=4)
    parser.add_argument("--new", type=int, default=1000, help="vectors between syncs")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--folder", help="where the file is written; by default the system's temporary folder"
    )
    parser.add_argument("--out", help="folder of the record")
    parser.add_argument("--name", default="sync-cost")
    return parser.parse_args()


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median and highest of seconds, in milliseconds."""
    return {"median_ms": round(statistics.median(values) * 1e3, 3), "highest_ms": round(max(values) * 1e3, 3)}


def plain_append(path: Path, size: int) -> float:
    """Seconds to append `size` bytes and wait for the disk, with nothing around it."""
    data = os.urandom(size)
    with open(path, "ab", buffering=0) as file:

        def work() -> None:
            file.write(data)
            os.fsync(file.fileno())

        return seconds(work)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    index = TurboQuantIndex(options.d, options.bits, "ip")
    for start in range(0, options.n, CHUNK):
        count = min(CHUNK, options.n - start)
        index.add(rng.standard_normal((count, options.d), dtype=np.float32))
    path = folder / "index.tqann"
    whole = [seconds(lambda: index.save(path)) for _ in range(3)]
    first = seconds(lambda: index.sync(path))
    size = path.stat().st_size
    adds, syncs, removals, plain = [], [], [], []
    bytes_added, bytes_removed = [], []
    for _ in range(options.repeats):
        new = rng.standard_normal((options.new, options.d), dtype=np.float32)
        adds.append(seconds(lambda new=new: index.add(new)))
        before = path.stat().st_size
        syncs.append(seconds(lambda: index.sync(path)))
        bytes_added.append(path.stat().st_size - before)
        plain.append(plain_append(folder / "plain", bytes_added[-1]))
    # The first removal gives every vector a stored id; the ones after it are the usual case.
    index.remove_ids(rng.choice(index.ids, 1))
    first_removal = seconds(lambda: index.sync(path))
    for _ in range(options.repeats):
        index.remove_ids(rng.choice(index.ids, options.new // 10, replace=False))
        before = path.stat().st_size
        removals.append(seconds(lambda: index.sync(path)))
        bytes_removed.append(path.stat().st_size - before)
    opened = read_index(path)
    if not np.array_equal(opened.ids, index.ids):
        raise AssertionError("the file does not hold the index")
    nothing = [seconds(lambda: index.sync(path)) for _ in range(options.repeats)]
    load = seconds(lambda: read_index(path))
    compact = seconds(lambda: index.sync(path, compact=True))
    return {
        "file_bytes": size,
        "save_whole_seconds": round(statistics.median(whole), 3),
        "first_sync_seconds": round(first, 3),
        f"add_{options.new}": spread(adds),
        f"sync_{options.new}_new": spread(syncs) | {"bytes": int(statistics.median(bytes_added))},
        "plain_append_and_fsync": spread(plain) | {"bytes": int(statistics.median(bytes_added))},
        "sync_after_the_first_removal": spread([first_removal]),
        f"sync_{options.new // 10}_removed": spread(removals)
        | {"bytes": int(statistics.median(bytes_removed))},
        "sync_nothing_changed": spread(nothing),
        "load_with_journal_seconds": round(load, 3),
        "load_compacted_seconds": round(seconds(lambda: read_index(path)), 3),
        "compact_seconds": round(compact, 3),
    }


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(options, Path(folder))
    for name, value in results.items():
        print(f"{name}: {value}")
    if options.out:
        names = ("n", "d", "bits", "new", "repeats")
        settings = {name: getattr(options, name) for name in names}
        settings["load_average"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
        print(write_record(new_record("sync", settings=settings, results=results), options.out, options.name))


if __name__ == "__main__":
    main()
