"""Exact nearest neighbours, computed by the harness itself."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from .folders import cache_folder

__all__ = ["exact_neighbours", "ground_truth"]

_MARGIN = 32
_BLOCK = 16384
_CACHED_FROM = 2e11  # multiply-adds: a few seconds of work


def ground_truth(base: np.ndarray, queries: np.ndarray, k: int, metric: str) -> np.ndarray:
    """`exact_neighbours`, kept on disk by a hash of the vectors where the work is large."""
    if float(len(base)) * len(queries) * base.shape[1] < _CACHED_FROM:
        return exact_neighbours(base, queries, k, metric)
    digest = hashlib.sha256(f"{metric} {k} {base.shape} {queries.shape}".encode())
    for part in (base, queries):
        digest.update(np.ascontiguousarray(part).data)
    path = cache_folder("ground_truth") / f"{digest.hexdigest()[:24]}.npy"
    if path.is_file():
        return np.load(path)
    truth = exact_neighbours(base, queries, k, metric)
    partial = path.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, truth)
    partial.replace(path)
    return truth


def exact_neighbours(base: np.ndarray, queries: np.ndarray, k: int, metric: str) -> np.ndarray:
    """Ids [nq, min(k, n)] of the nearest rows, best first, ties by smaller id.

    A blocked float32 product finds k + 32 candidates a query; they are ranked again in float64.

    Parameters
    ----------
    base, queries : float32 [n, d], float32 [nq, d]
    k : int
        Neighbours a query.
    metric : str
        "l2", "ip" or "cosine".
    """
    if metric not in ("l2", "ip", "cosine"):
        raise ValueError(f'metric must be "l2", "ip" or "cosine", got {metric!r}')
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if metric == "cosine":
        base, queries = _unit(base), _unit(queries)
    k = min(k, len(base))
    truth = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), 1024):
        block = np.ascontiguousarray(queries[start : start + 1024], dtype=np.float32)
        candidates = _candidates(base, block, min(k + _MARGIN, len(base)), metric)
        truth[start : start + 1024] = _rank(base, block, candidates, metric)[:, :k]
    return truth


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def _candidates(base: np.ndarray, queries: np.ndarray, count: int, metric: str) -> np.ndarray:
    """Ids [nq, count] of the largest float32 scores, in no order."""
    best = np.empty((len(queries), 0), dtype=np.float32)
    ids = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(base), _BLOCK):
        rows = base[start : start + _BLOCK]
        score = queries @ rows.T
        if metric == "l2":
            score -= 0.5 * np.einsum("ij,ij->i", rows, rows)
        here = np.broadcast_to(np.arange(start, start + len(rows)), score.shape)
        best, ids = np.concatenate([best, score], axis=1), np.concatenate([ids, here], axis=1)
        if best.shape[1] > count:
            keep = np.argpartition(-best, count - 1, axis=1)[:, :count]
            best, ids = np.take_along_axis(best, keep, 1), np.take_along_axis(ids, keep, 1)
    return ids


def _rank(base: np.ndarray, queries: np.ndarray, ids: np.ndarray, metric: str) -> np.ndarray:
    """The same ids, best first by their float64 score, ties by smaller id."""
    ordered = np.empty_like(ids)
    for i, (query, own) in enumerate(zip(queries.astype(np.float64), ids, strict=True)):
        rows = base[own].astype(np.float64)
        score = ((rows - query) ** 2).sum(axis=1) if metric == "l2" else -(rows @ query)
        ordered[i] = own[np.lexsort((own, score))]
    return ordered
