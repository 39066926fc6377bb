"""Scores of tasks with bootstrap intervals, alone and against full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .sources import BUCKETS

__all__ = ["AVERAGE", "FULL", "score_rows"]

FULL = "full"
"""Name of the cache in full precision."""
AVERAGE = "average"
"""Name of the mean over tasks, each weighing the same."""
_RESAMPLES = 2000


def score_rows(
    answers: Sequence[Mapping[str, Any]], seed: int = 0, buckets: bool = False
) -> list[dict[str, Any]]:
    """A row for every cache and task, then for the average of tasks.

    Parameters
    ----------
    answers : sequence of mappings
        `task`, `metric`, `cache`, `key`, `bucket`, `score` (0 to 1), `pred`, `cut`, `packed` and `effective_bits`;
        every example once for each cache.
    seed : int
        Of the resamples.
    buckets : bool
        Rows by length, too.

    Returns
    -------
    list of dict
        Scores and differences to full precision in hundredths; intervals are 95% percentile bootstrap intervals over
        examples, and None where a task has a single one.
    """
    caches = list(dict.fromkeys(row["cache"] for row in answers))
    tasks = list(dict.fromkeys(row["task"] for row in answers))
    by_cell: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in answers:
        by_cell.setdefault((row["task"], row["cache"]), {})[row["key"]] = row
    out = []
    for bucket in (None, *BUCKETS) if buckets else (None,):
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {cache: [] for cache in caches}
        found: dict[str, list[Mapping[str, Any]]] = {cache: [] for cache in caches}
        for task in tasks:
            full = by_cell[task, FULL]
            keys = [key for key, row in full.items() if bucket in (None, row["bucket"])]
            if not keys:
                continue
            reference = np.array([full[key]["score"] for key in keys])
            same = [full[key]["pred"] for key in keys]
            for cache in caches:
                group = [by_cell[task, cache][key] for key in keys]
                scores = np.array([row["score"] for row in group])
                parts[cache].append((scores, scores - reference))
                found[cache] += group
                agreed = sum(row["pred"] == said for row, said in zip(group, same, strict=True))
                out.append(
                    _row(task, group[0]["metric"], cache, bucket, group, [parts[cache][-1]], seed)
                    | {"same": agreed}
                )
        if len(tasks) > 1:
            out += [
                _row(AVERAGE, "", cache, bucket, found[cache], parts[cache], seed) | {"same": None}
                for cache in caches
                if parts[cache]
            ]
    return out


def _row(
    task: str,
    metric: str,
    cache: str,
    bucket: str | None,
    group: Sequence[Mapping[str, Any]],
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    seed: int,
) -> dict[str, Any]:
    low, high = _interval([scores for scores, _ in parts], seed)
    difference_low, difference_high = _interval([differences for _, differences in parts], seed)
    packed = [row["effective_bits"] for row in group if row["packed"]]
    return {
        "task": task,
        "metric": metric,
        "cache": cache,
        "bucket": bucket,
        "n": len(group),
        "score": 100 * float(np.mean([scores.mean() for scores, _ in parts])),
        "low": low,
        "high": high,
        "difference": 100 * float(np.mean([differences.mean() for _, differences in parts])),
        "difference_low": difference_low,
        "difference_high": difference_high,
        "cut": sum(row["cut"] for row in group),
        "packed": len(packed),
        "effective_bits": float(np.mean(packed)) if packed else 0.0,
    }


def _interval(parts: Sequence[np.ndarray], seed: int) -> tuple[float | None, float | None]:
    """Interval of the mean of the parts' means; the same seed gives the same resamples, so that caches are paired."""
    if any(len(values) < 2 for values in parts):
        return None, None
    random = np.random.default_rng(seed)
    means = np.zeros(_RESAMPLES)
    for values in parts:
        means += values[random.integers(len(values), size=(_RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(100 * means / len(parts), (2.5, 97.5))
    return float(low), float(high)
