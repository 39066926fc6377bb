"""What is timed on an index; each function runs beside the index, wherever that lives."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from .adapters import Adapter

__all__ = [
    "Budget",
    "add_seconds",
    "batch_seconds",
    "batches_seconds",
    "build_seconds",
    "found_ids",
    "single_seconds",
    "train_seconds",
    "true_bytes",
]

Budget = tuple[int, float]  # at most so many queries, and no new one after so many seconds


def build_seconds(adapter: Adapter, train: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Seconds of training on `train` and of adding `base`."""
    return train_seconds(adapter, train), add_seconds(adapter, base)


def train_seconds(adapter: Adapter, train: np.ndarray) -> float:
    """Seconds of training."""
    start = perf_counter()
    adapter.train(train)
    return perf_counter() - start


def add_seconds(adapter: Adapter, base: np.ndarray) -> float:
    """Seconds of adding."""
    start = perf_counter()
    adapter.add(base)
    return perf_counter() - start


def single_seconds(adapter: Adapter, queries: np.ndarray, k: int, budget: Budget) -> list[float]:
    """Seconds of each of a few searches of one query; the first, unrecorded, warms up."""
    most, limit = budget
    adapter.search(queries[:1], k)
    seconds: list[float] = []
    begun = perf_counter()
    for i in range(min(most, len(queries))):
        query = queries[i : i + 1]
        start = perf_counter()
        adapter.search(query, k)
        now = perf_counter()
        seconds.append(now - start)
        if now - begun > limit and len(seconds) >= 5:
            break
    return seconds


def batch_seconds(adapter: Adapter, queries: np.ndarray, k: int) -> float:
    """Seconds of one search of all `queries`."""
    start = perf_counter()
    adapter.search(queries, k)
    return perf_counter() - start


def batches_seconds(adapter: Adapter, queries: np.ndarray, k: int, limit: float) -> list[float]:
    """Seconds of each search of all `queries`, repeated for `limit` seconds; of three or more the first is left out."""
    taken = [batch_seconds(adapter, queries, k)]
    while sum(taken) < limit:
        taken.append(batch_seconds(adapter, queries, k))
    return taken[1:] if len(taken) > 2 else taken


def true_bytes(adapter: Adapter, n: int) -> float:
    """True bytes per vector."""
    return adapter.bytes_per_vector(n)


def found_ids(adapter: Adapter, queries: np.ndarray, k: int) -> np.ndarray:
    """Ids [nq, k] that the index finds."""
    return adapter.search(queries, k)
