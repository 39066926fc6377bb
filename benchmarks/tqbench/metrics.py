"""Quality and speed from raw results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["latency_percentiles", "median", "recall_1_at_k", "recall_k_at_k"]


def recall_1_at_k(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of queries whose true nearest neighbour is among the first `k` found.

    Parameters
    ----------
    found, truth : int [nq, >= k], int [nq, >= 1]
        Ids, best first; -1 in `found` is an empty place.
    """
    _check(found, truth, k, 1)
    return float((found[:, :k] == truth[:, :1]).any(axis=1).mean())


def recall_k_at_k(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Mean share of the true first `k` that is among the first `k` found."""
    _check(found, truth, k, k)
    hits = (found[:, :k, None] == truth[:, None, :k]).any(axis=1)
    return float(hits.mean())


def latency_percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """(p50, p99) in milliseconds, interpolated linearly."""
    p50, p99 = np.percentile(np.asarray(seconds, dtype=np.float64) * 1e3, [50, 99])
    return float(p50), float(p99)


def median(values: Sequence[float]) -> float:
    """Median of the repeats."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def _check(found: np.ndarray, truth: np.ndarray, k: int, depth: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if found.ndim != 2 or truth.ndim != 2 or len(found) != len(truth):
        raise ValueError(
            f"found and truth must have a row per query, got shapes {found.shape} and {truth.shape}"
        )
    if found.shape[1] < k or truth.shape[1] < depth:
        raise ValueError(
            f"found and truth must have {k} and {depth} columns, got {found.shape} and {truth.shape}"
        )
