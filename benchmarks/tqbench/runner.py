"""Runs every case on one data set: build, ground truth, quality, speed in interleaved repeats, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import Unavailable
from .groundtruth import ground_truth
from .hosts import Host, InProcess, open_host
from .memory import MemoryMeter
from .methods import Case
from .metrics import latency_percentiles, median, recall_1_at_k, recall_k_at_k
from .sources.dataset import Dataset
from .timing import (
    add_seconds,
    batch_seconds,
    build_seconds,
    found_ids,
    single_seconds,
    train_seconds,
    true_bytes,
)

__all__ = ["RunSettings", "run_groups"]

_TRUTH_DEPTH = 100


@dataclass(frozen=True)
class RunSettings:
    """How much is measured.

    Attributes
    ----------
    k : int
        Neighbours asked for.
    repeats : int
        Times that each figure of speed is taken; every repeat goes through all cases of a width in turn.
    threads : int
        What "all threads" means; the same for every method.
    rebuild_below : float
        Builds that took fewer seconds are repeated as well.
    singles : int
        Single queries a repeat, at most.
    seconds : float
        Time that a measurement of search speed aims at.
    memory : bool
        Measure resident memory.
    """

    k: int = 10
    repeats: int = 3
    threads: int = 1
    rebuild_below: float = 0.3
    singles: int = 100
    seconds: float = 0.06
    memory: bool = True


@dataclass
class _Running:
    """A case that runs, with what was measured so far."""

    case: Case
    host: Host
    train_seconds: list[float] = field(default_factory=list)
    add_seconds: list[float] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)
    bytes_per_vector: float = 0.0
    resident: int | None = None
    p50: list[float] = field(default_factory=list)
    singles: list[float] = field(default_factory=list)
    qps: dict[int, list[float]] = field(default_factory=dict)


Report = Callable[[str, int, int], None]


def run_groups(
    data: Dataset, groups: list[list[Case]], settings: RunSettings, report: Report = lambda *_: None
) -> list[dict[str, Any]]:
    """Result rows, one per case, in the order of the groups.

    Parameters
    ----------
    data : Dataset
    groups : list of list of Case
        Cases that are compared with each other; the indexes of one group are in memory at once.
    settings : RunSettings
    report : callable
        Called as report(what, steps done, steps in all).
    """
    prepared = data.prepared()
    steps = _Steps(report, sum(len(group) for group in groups) * (1 + settings.repeats))
    steps.say("exact neighbours")
    truth = ground_truth(prepared.base, prepared.queries, _TRUTH_DEPTH, prepared.metric)
    rows: list[dict[str, Any]] = []
    with MemoryMeter(prepared.base, prepared.metric) as meter:
        for group in groups:
            rows += _run_group(prepared, truth, group, settings, meter if settings.memory else None, steps)
    return rows


class _Steps:
    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def say(self, what: str) -> None:
        self._report(what, self._done, self._total)

    def advance(self, count: int = 1) -> None:
        self._done += count


def _run_group(
    data: Dataset,
    truth: np.ndarray,
    group: list[Case],
    settings: RunSettings,
    meter: MemoryMeter | None,
    steps: _Steps,
) -> list[dict[str, Any]]:
    running: dict[str, _Running] = {}
    skipped: dict[str, str] = {}
    try:
        for case in group:
            steps.say(f"build {case.method.label} {_width(case)}")
            try:
                running[case.key] = _build(data, truth, case, settings, meter)
            except Unavailable as reason:
                skipped[case.key] = str(reason)
                steps.advance(settings.repeats)
            steps.advance()
        for repeat in range(settings.repeats):
            for one in running.values():
                steps.say(
                    f"repeat {repeat + 1} of {settings.repeats}: {one.case.method.label} {_width(one.case)}"
                )
                if repeat and one.train_seconds[0] + one.add_seconds[0] < settings.rebuild_below:
                    _time_build(data, one)
                _time_search(data, one, settings)
                steps.advance()
    finally:
        for one in running.values():
            one.host.close()
    return [
        _skipped_row(case, skipped[case.key])
        if case.key in skipped
        else _row(running[case.key], len(data.base))
        for case in group
    ]


def _width(case: Case) -> str:
    return "" if case.bits >= 32 else f"{case.bits:g} bits"


def _training_rows(data: Dataset, case: Case) -> np.ndarray:
    if case.method.trains_on == "held_out":
        if data.held_out is None:
            raise Unavailable("the source has no held-out rows")
        return data.held_out
    return data.base


def _build(
    data: Dataset, truth: np.ndarray, case: Case, settings: RunSettings, meter: MemoryMeter | None
) -> _Running:
    _training_rows(data, case)
    one = _Running(case, open_host(case, data.d, data.metric, settings.threads))
    try:
        trained = None
        if meter is not None and isinstance(one.host, InProcess) and hasattr(one.host.adapter, "trained"):
            trained = _time_build_keeping(data, one, one.host)
        else:
            _time_build(data, one)
        found = one.host.call(found_ids, data.queries, settings.k, threads=settings.threads)
        one.quality = {
            "recall_1_at_1": recall_1_at_k(found, truth, 1),
            f"recall_1_at_{settings.k}": recall_1_at_k(found, truth, settings.k),
            f"recall_{settings.k}_at_{settings.k}": recall_k_at_k(found, truth, settings.k),
        }
        one.bytes_per_vector = one.host.call(true_bytes, len(data.base), threads=settings.threads)
        if meter is not None:
            one.resident = meter.growth(case, trained)
    except BaseException:
        one.host.close()
        raise
    return one


def _time_build(data: Dataset, one: _Running) -> None:
    trained, added = one.host.build(build_seconds, _training_rows(data, one.case), data.base)
    one.train_seconds.append(trained)
    one.add_seconds.append(added)


def _time_build_keeping(data: Dataset, one: _Running, host: InProcess) -> bytes:
    """Build in two timed halves; the trained, empty index between them is where the memory meter starts."""
    one.train_seconds.append(host.build(train_seconds, _training_rows(data, one.case)))
    trained = host.adapter.trained()  # type: ignore[attr-defined]
    one.add_seconds.append(host.call(add_seconds, data.base, threads=host.threads))
    return trained


def _time_search(data: Dataset, one: _Running, settings: RunSettings) -> None:
    """One repeat: single queries at one thread, batches at one thread and at all."""
    queries, k = data.queries, settings.k
    budget = (settings.singles, settings.seconds)
    seconds = one.host.call(single_seconds, queries, k, budget, threads=1)
    p50, _ = latency_percentiles(seconds)
    one.p50.append(p50)
    one.singles += seconds
    for threads in dict.fromkeys((1, settings.threads)):
        # A slow method answers fewer queries: its speed shows as well in a part of the batch.
        held = one.qps.setdefault(threads, [])
        speed = held[0] if held else 1e3 / p50
        count = int(min(len(queries), max(32, speed * settings.seconds)))
        if not held and count < len(queries):
            count = min(len(queries), 4 * count)  # a batch runs faster than single queries promise
        taken = one.host.call(batch_seconds, queries[:count], k, threads=threads)
        held.append(min(count, len(queries)) / taken)


def _row(one: _Running, n: int) -> dict[str, Any]:
    case = one.case
    return {
        **_identity(case),
        "status": "ok",
        "bytes_per_vector": round(one.bytes_per_vector, 3),
        "resident_bytes": one.resident,
        "resident_bytes_per_vector": None if one.resident is None else round(one.resident / n, 1),
        "train_seconds": median(one.train_seconds),
        "add_seconds": median(one.add_seconds),
        "build_repeats": len(one.add_seconds),
        **one.quality,
        "latency_ms_p50": median(one.p50),
        "latency_ms_p99": latency_percentiles(one.singles)[1],  # of all repeats: a tail needs many
        "qps_1_thread": median(one.qps[1]),
        "qps_all_threads": median(one.qps[max(one.qps)]),
    }


def _skipped_row(case: Case, reason: str) -> dict[str, Any]:
    return {**_identity(case), "status": "skipped", "reason": reason}


def _identity(case: Case) -> dict[str, Any]:
    method = case.method
    return {
        "method": method.name,
        "label": method.label,
        "family": method.family,
        "bits": case.bits,
        "trains_on": method.trains_on,
    }
