"""Adding, removing, filtering and threads of our index, and build times beside the rivals'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from tqann import SearchParameters, TurboQuantIndex

from ..errors import Unavailable
from ..hosts import open_host
from ..methods import METHODS, Case
from ..metrics import median
from ..sources.generated import gaussian_rows
from ..timing import build_seconds
from .limits import read_speed

__all__ = ["UpdateSettings", "run_updates"]

_LONGEST_PAIRS = 20.0  # seconds, after which three pairs are enough


@dataclass(frozen=True)
class UpdateSettings:
    """What the updates part measures.

    Attributes
    ----------
    d, bits : int, float
        Of every index here.
    rows : int
        Vectors of the build, and of the index that is added to, removed from, filtered, and searched by batches.
    thread_rows : int
        Vectors of the index that two threads search with one query; it repeats those of `rows`.
    singles : int
        Single additions, removals and searches.
    threads : int
        "All threads".
    rivals : tuple of str
        Methods whose build is timed beside ours.
    pairs : int
        Pairs of a search with one thread and one with all.
    """

    d: int = 1536
    bits: float = 4
    rows: int = 20_000
    thread_rows: int = 1_000_000
    singles: int = 500
    threads: int = 2
    rivals: tuple[str, ...] = ("turbovec", "pq-fs", "pq")
    pairs: int = 16


def run_updates(
    settings: UpdateSettings, seed: int = 0, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Figures of a record's ``updates``: seconds throughout."""
    extra = settings.singles + 256
    x = gaussian_rows("isotropic", settings.rows + extra, settings.d, seed)
    base, more, queries = x[: settings.rows], x[settings.rows : -256], x[-256:]
    say("updates: builds")
    builds = [_build(name, base, settings) for name in ("chain", *settings.rivals)]
    say("updates: single additions and removals")
    index = TurboQuantIndex(settings.d, settings.bits, "ip", threads=settings.threads)
    index.add(base)
    index.search(queries[:1], 10)
    found = {
        "builds": builds,
        "filters": _filters(index, queries, settings),
        "add_one_seconds": _each(index.add, [more[i : i + 1] for i in range(len(more))]),
        **_removals(index, queries[:1], settings, seed),
    }
    say("updates: threads")
    return {**found, "threads": _threads(base, queries, settings)}


def _build(name: str, base: np.ndarray, settings: UpdateSettings) -> dict[str, Any]:
    case = Case(METHODS[name], settings.bits)
    row: dict[str, Any] = {"method": name, "label": case.method.label}
    try:
        host = open_host(case, settings.d, "ip", settings.threads, counts=())
        try:
            trained, added = host.build(build_seconds, base, base)
        finally:
            host.close()
    except Unavailable as reason:
        return {**row, "status": "skipped", "reason": str(reason)}
    return {**row, "status": "ok", "train_seconds": trained, "add_seconds": added}


def _each(function: Callable[[Any], Any], arguments: list[Any]) -> float:
    """Median seconds of a call; the first is left out."""
    taken = []
    for argument in arguments:
        start = perf_counter()
        function(argument)
        taken.append(perf_counter() - start)
    return median(taken[1:])


def _removals(
    index: TurboQuantIndex, query: np.ndarray, settings: UpdateSettings, seed: int
) -> dict[str, float]:
    """Mean seconds an id of single removals and of one call, with what they put off until the next search."""
    count = min(settings.singles, settings.rows // 4)
    ids = np.random.default_rng(seed).permutation(settings.rows)[: 2 * count]
    found = []
    for arguments in ([np.array([i]) for i in ids[:count]], [ids[count:]]):
        times = [perf_counter()]
        for one in arguments:
            index.remove_ids(one)
        times.append(perf_counter())
        for _ in range(2):
            index.search(query, 1)
            times.append(perf_counter())
        removed, first, second = np.diff(times).tolist()
        found.append((removed + max(0.0, first - second)) / count)
    return {"remove_one_seconds": found[0], "remove_many": count, "remove_many_seconds": found[1]}


def _filters(index: TurboQuantIndex, queries: np.ndarray, settings: UpdateSettings) -> dict[str, float]:
    """Seconds of a single query at one thread without a filter and with 1% of the ids allowed, each query by all."""
    count = max(1, settings.rows // 100)
    spread = np.sort(np.random.default_rng(1).permutation(settings.rows)[:count])
    chosen = {"none": None, "spread": spread, "neighbouring": np.arange(count)}
    params = {}
    for name, ids in chosen.items():
        mask = None
        if ids is not None:
            mask = np.zeros(settings.rows, dtype=bool)
            mask[ids] = True
        params[name] = SearchParameters(sel=mask, threads=1)
    taken: dict[str, list[float]] = {name: [] for name in params}
    for i in range(min(200, settings.singles)):
        query = queries[i % len(queries)][None]
        for name, param in params.items():
            start = perf_counter()
            index.search(query, 10, params=param)
            taken[name].append(perf_counter() - start)
    return {name: median(values[1:]) for name, values in taken.items()}


def _threads(base: np.ndarray, queries: np.ndarray, settings: UpdateSettings) -> dict[str, Any]:
    """Rows, seconds and ratios to one thread, by queries a call: a batch, and one query of a larger index."""
    index = TurboQuantIndex(settings.d, settings.bits, "ip", threads=settings.threads)
    codes = index.sa_encode(base)
    found: dict[str, Any] = {"rows": {}, "seconds": {}, "ratios": {}}
    for nq, rows in ((len(queries), settings.rows), (1, settings.thread_rows)):
        while index.ntotal < rows:
            index.add_sa_codes(codes[: rows - index.ntotal])
        seconds, ratios = _pairs(index, queries, nq, settings)
        found["rows"][str(nq)] = index.ntotal
        found["seconds"][str(nq)] = seconds
        found["ratios"][str(nq)] = ratios
    # What one query can gain by threads, when all it waits for are its codes.
    held = index.ntotal * codes.shape[1]
    found["reads"] = {str(n): held / read_speed(held, n) for n in dict.fromkeys((1, settings.threads))}
    return found


def _pairs(
    index: TurboQuantIndex, queries: np.ndarray, nq: int, settings: UpdateSettings
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds by threads, and median ratio of one thread's to them within a pair; the first pair warms up."""
    counts = list(dict.fromkeys((1, settings.threads)))
    taken: dict[int, list[float]] = {threads: [] for threads in counts}
    begun = perf_counter()
    for number in range(settings.pairs + 1):
        first = number % (len(queries) // nq) * nq
        for threads in counts if number % 2 else reversed(counts):
            start = perf_counter()
            index.search(queries[first : first + nq], 10, params=SearchParameters(threads=threads))
            taken[threads].append(perf_counter() - start)
        if number >= 3 and perf_counter() - begun > _LONGEST_PAIRS:
            break
    seconds = {str(threads): median(values[1:]) for threads, values in taken.items()}
    ratios = {
        str(threads): median([one / many for one, many in zip(taken[1][1:], taken[threads][1:], strict=True)])
        for threads in counts[1:]
    }
    return seconds, ratios
