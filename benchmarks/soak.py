"""Mixed use of one index for as long as asked, checked against an oracle, with its memory, as a JSON record.

python benchmarks/soak.py --minutes 60 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tqann import TurboQuantIndex, read_index
from tqbench.records import new_record, write_record

D = 64
POOL = 20_000
K = 10


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, help="end after so many steps instead")
    parser.add_argument("--vectors", type=int, default=20_000, help="about so many are held")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder of the record")
    parser.add_argument("--name", default="soak")
    return parser.parse_args()


class Soak:
    """An index, its file, and the rows of `sa_encode` that it must hold by id.

    Parameters
    ----------
    folder : Path
        Where the file is.
    vectors : int
        Number of vectors that the index keeps about.
    seed : int
    options
        Of the index.
    """

    def __init__(self, folder: Path, vectors: int, seed: int, **options: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.vectors, self.options = vectors, options
        self.path = folder / "index.tqann"
        self.pool = self.rng.standard_normal((POOL, D)).astype(np.float32)
        self.index = TurboQuantIndex(D, **options)
        self.rows = self.index.sa_encode(self.pool)
        self.held: dict[int, int] = {}  # id -> row of the pool
        self.synced: dict[int, int] = {}
        self.next_id = 0
        self.counts: Counter[str] = Counter()

    def step(self) -> None:
        """One change or question, at random; as many vectors leave as come."""
        crowded = len(self.held) > self.vectors
        kinds = {"add": 0.1 if crowded else 0.35, "remove": 0.35 if crowded else 0.1, "search": 0.2}
        kinds |= {"add_with_ids": 0.05, "sync": 0.2, "reopen": 0.05, "check": 0.02, "filter": 0.03}
        names = list(kinds)
        weights = np.array(list(kinds.values()))
        kind = names[int(self.rng.choice(len(names), p=weights / weights.sum()))]
        self.counts[kind] += 1
        getattr(self, f"_{kind}")()

    def _add(self) -> None:
        picked = self.rng.integers(0, POOL, self.rng.choice([1, 3, 100, 500]))
        self.index.add(self.pool[picked])
        self.held.update(zip(range(self.next_id, self.next_id + len(picked)), picked.tolist(), strict=True))
        self.next_id += len(picked)

    def _add_with_ids(self) -> None:
        picked = self.rng.integers(0, POOL, 20)
        ids = self.next_id + self.rng.permutation(60)[:20]
        self.index.add_with_ids(self.pool[picked], ids)
        self.held.update(zip(ids.tolist(), picked.tolist(), strict=True))
        self.next_id = int(ids.max()) + 1

    def _remove(self) -> None:
        if not self.held:
            return
        ids = self.rng.choice(
            np.fromiter(self.held, np.int64), min(len(self.held), int(self.rng.integers(1, 600)))
        )
        removed = self.index.remove_ids(ids)
        gone = sum(self.held.pop(name, None) is not None for name in ids.tolist())
        expect(removed == gone, f"{removed} removed instead of {gone}")

    def _search(self) -> None:
        queries = self.pool[self.rng.integers(0, POOL, 4)] + np.float32(0.1)
        distances, ids = self.index.search(queries, K)
        found = ids[ids >= 0]
        expect(all(name in self.held for name in found.tolist()), "an id was found that is not held")
        expect(len(found) == 4 * min(K, len(self.held)), "too few were found")
        expect(bool((np.diff(distances, axis=1) >= 0).all()), "distances are not in order")

    def _filter(self) -> None:
        if not self.held:
            return
        allowed = self.rng.choice(np.fromiter(self.held, np.int64), 50)
        ids = self.index.search(self.pool[:2], K, params=allowed)[1]
        expect(set(ids[ids >= 0].tolist()) <= set(allowed.tolist()), "a filter let another id through")

    def _sync(self) -> None:
        self.index.sync(self.path)
        self.synced = dict(self.held)

    def _reopen(self) -> None:
        if not self.path.exists():
            return
        self.index = read_index(self.path, mmap=bool(self.rng.integers(0, 2)))
        self.held = dict(self.synced)
        self.next_id = int(self.index._vectors.id_map.next_id)
        expect(self.index.ntotal == len(self.held), "the file does not hold what was synced")

    def _check(self) -> None:
        """Everything against an index made from the oracle alone."""
        ids = np.fromiter(sorted(self.held), np.int64)
        expect(np.array_equal(np.sort(self.index.ids), ids), "ids differ")
        expected = TurboQuantIndex(D, **self.options)
        expected.add_sa_codes(self.rows[[self.held[name] for name in ids.tolist()]], ids)
        expect(
            np.array_equal(self.index.reconstruct_batch(ids), expected.reconstruct_batch(ids)),
            "vectors differ",
        )
        queries = self.pool[self.rng.integers(0, POOL, 8)] + np.float32(0.1)
        for mine, theirs in zip(self.index.search(queries, 50), expected.search(queries, 50), strict=True):
            expect(np.array_equal(mine, theirs), "results differ")


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise AssertionError(otherwise)


def main() -> int:
    options = parse()
    settings = {
        "minutes": None if options.steps else options.minutes,
        "steps": options.steps,
        "vectors": options.vectors,
        "d": D,
        "bits": 4,
        "seed": options.seed,
    }
    record = new_record("soak", settings=settings)  # now, so that the commit is the one that runs
    process, samples = psutil.Process(), []
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), options.vectors, options.seed, bits=4)
        started = time.perf_counter()
        due, share = 0.0, 0.0
        while share < 1:
            soak.step()
            elapsed = time.perf_counter() - started
            share = soak.counts.total() / options.steps if options.steps else elapsed / (60 * options.minutes)
            if share >= due:
                gc.collect()
                memory = round(process.memory_info().rss / 2**20, 1)
                samples.append([round(elapsed, 3), memory, soak.index.ntotal, process.num_fds()])
                due = share + 1 / 100
        soak._check()
    settled = np.array(
        samples[len(samples) // 5 :], dtype=float
    )  # the first fifth fills caches and the index
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) * 3600
    halves = [float(np.median(half[:, 1])) for half in np.array_split(settled, 2)]
    summary = {
        "cpu_minutes": round(time.process_time() / 60, 1),
        "steps": sum(soak.counts.values()),
        "counts": dict(soak.counts),
        "ids_given": soak.next_id,
        "rss_mib_medians": halves,
        "rss_mib_peak": float(settled[:, 1].max()),
        "rss_mib_per_hour": round(slope, 2),
        "open_files": [samples[0][3], samples[-1][3]],
    }
    print(*(f"{name}: {value}" for name, value in summary.items()), sep="\n")
    if options.out:
        print(write_record(record | {"results": summary, "samples": samples}, options.out, options.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
