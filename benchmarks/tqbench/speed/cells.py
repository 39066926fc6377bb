"""Measures one group: the methods of one set and one width, side by side in every cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from ..errors import Unavailable
from ..hosts import Host, open_host
from ..memory import available_memory
from ..methods import Case
from ..metrics import median, recall_k_at_k
from ..sources.dataset import Dataset
from ..timing import batches_seconds, build_seconds, found_ids, single_seconds, true_bytes
from .grid import Cell, Grid

__all__ = ["RECALL_DEPTH", "SpeedSettings", "run_group"]

RECALL_DEPTH = 10
_RECALL = f"recall_{RECALL_DEPTH}_at_{RECALL_DEPTH}"
_LONGEST_BATCH = 1.0  # seconds; a method that needs more answers a part of the batch


@dataclass(frozen=True)
class SpeedSettings:
    """How much is measured.

    Attributes
    ----------
    repeats : int
        Times that each figure is taken; every repeat goes through all methods of a cell in turn.
    seconds : float
        Time that one figure of one method aims at.
    singles : int
        Single queries a figure, at most.
    recall_queries : int
        Queries that recall is the mean of.
    """

    repeats: int = 3
    seconds: float = 0.15
    singles: int = 200
    recall_queries: int = 256


@dataclass(eq=False)
class _Running:
    case: Case
    host: Host
    row: dict[str, Any]
    speed: float  # queries/s of the batch that recall was taken from
    qps: list[float] = field(default_factory=list)

    @property
    def recall(self) -> float:
        return self.row[_RECALL]

    def matches(self, rival: _Running) -> bool:
        """Whether this finds no less in no more bytes."""
        size = "bytes_per_vector"
        return self.recall >= rival.recall and self.row[size] <= rival.row[size]


def run_group(
    data: Dataset,
    truth: np.ndarray,
    bits: float,
    cases: Sequence[Case],
    lower: Sequence[Sequence[Case]],
    grid: Grid,
    settings: SpeedSettings,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Methods and cells of one group.

    Parameters
    ----------
    data : Dataset
        Base and queries, prepared.
    truth : int64 [recall_queries, RECALL_DEPTH]
        Exact neighbours of the first queries.
    bits : float
    cases : sequence of Case
        The methods at this width; their indexes are in memory at once.
    lower : sequence of sequence of Case
        For each of our codes its lower widths, falling. The narrowest that finds no less in no more bytes than a rival
        takes part as one more method, named with its width.
    grid : Grid
    settings : SpeedSettings
    say : callable
        Called with a line before every step.

    Returns
    -------
    dict
        ``methods``: a row each, with bits, bytes, recall and build times, or the reason why it was skipped.
        ``cells``: for each `nq`, `k` and `threads`, queries/s by method as [median, lowest, highest].
    """
    group = {"bits": bits, "n": len(data.base), "d": data.d, "methods": [], "cells": []}
    running: list[_Running] = []

    def start(case: Case) -> _Running | None:
        say(f"build {case.method.label} {case.bits:g} bits")
        named = _identity(case, bits)
        try:
            running.append(_build(data, truth, case, named, grid, settings))
        except Unavailable as reason:
            group["methods"].append({**named, "status": "skipped", "reason": str(reason)})
            return None
        group["methods"].append(running[-1].row)
        return running[-1]

    def stop(one: _Running) -> None:
        running.remove(one)
        group["methods"].remove(one.row)
        one.host.close()

    try:
        for case in cases:
            start(case)
        rivals = [one for one in running if one.case.method.family != "tqann"]
        for widths in lower if rivals else ():
            _keep_narrowest(rivals, widths, start, stop)
        for cell in grid.cells:
            if cell.k > len(data.base):
                continue
            say(f"{bits:g} bits: {cell.nq} queries, k = {cell.k}, {cell.threads} threads")
            group["cells"].append(_cell(data, running, cell, settings))
    finally:
        for one in running:
            one.host.close()
    return group


def _keep_narrowest(
    rivals: Sequence[_Running],
    widths: Sequence[Case],
    start: Callable[[Case], _Running | None],
    stop: Callable[[_Running], None],
) -> None:
    """Keep those of falling widths that are the narrowest to match some rival, until recall is below every rival's."""
    least = min(rival.recall for rival in rivals)
    narrowest: dict[_Running, _Running] = {}
    for case in widths:
        one = start(case)
        if one is None:
            continue
        held = {one, *narrowest.values()}
        narrowest |= {rival: one for rival in rivals if one.matches(rival)}
        for spare in held.difference(narrowest.values()):
            stop(spare)
        if one.recall < least:
            break


def _identity(case: Case, bits: float) -> dict[str, Any]:
    name = case.method.name if case.bits == bits else f"{case.method.name}-{case.bits:g}"
    return {"method": name, "label": case.method.label, "family": case.method.family, "bits": case.bits}


def _build(
    data: Dataset,
    truth: np.ndarray,
    case: Case,
    named: dict[str, Any],
    grid: Grid,
    settings: SpeedSettings,
) -> _Running:
    _check_memory(data, case)
    threads = max(grid.threads)
    host = open_host(case, data.d, data.metric, threads, counts=grid.threads)
    try:
        trained, added = host.build(build_seconds, data.base, data.base)
        queries = data.queries[: settings.recall_queries]
        start = perf_counter()
        found = host.call(found_ids, queries, RECALL_DEPTH, threads=threads)
        speed = len(queries) / (perf_counter() - start)
        row = {
            **named,
            "status": "ok",
            "bytes_per_vector": round(host.call(true_bytes, len(data.base), threads=threads), 3),
            _RECALL: recall_k_at_k(found, truth, RECALL_DEPTH),
            "train_seconds": trained,
            "add_seconds": added,
        }
    except BaseException:
        host.close()
        raise
    return _Running(case, host, row, speed)


def _check_memory(data: Dataset, case: Case) -> None:
    """Raise Unavailable where the index and a copy of its input would not fit."""
    free = available_memory()
    needed = data.base.nbytes * 2 + int(len(data.base) * (data.d * case.bits / 4 + 64))
    if free is not None and needed > free:
        raise Unavailable(f"needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free")


def _cell(data: Dataset, running: list[_Running], cell: Cell, settings: SpeedSettings) -> dict[str, Any]:
    partial: dict[str, int] = {}
    for one in running:
        one.qps = []
    for _ in range(settings.repeats):
        for one in running:
            count = _affordable(one.speed, min(cell.nq, len(data.queries)))
            if count < cell.nq:
                partial[one.row["method"]] = count
            one.qps.append(_speed(one.host, data.queries, count, cell, settings))
    qps = {one.row["method"]: [median(one.qps), min(one.qps), max(one.qps)] for one in running}
    rounded = {name: [float(f"{value:.5g}") for value in values] for name, values in qps.items()}
    return {"nq": cell.nq, "k": cell.k, "threads": cell.threads, "qps": rounded, "partial": partial}


def _affordable(speed: float, nq: int) -> int:
    return nq if nq <= 16 or nq <= speed * _LONGEST_BATCH else max(16, int(speed * _LONGEST_BATCH))


def _speed(host: Host, queries: np.ndarray, count: int, cell: Cell, settings: SpeedSettings) -> float:
    """Queries/s of one figure; of single queries the median latency counts."""
    if cell.nq == 1:
        budget = (settings.singles, settings.seconds)
        return 1 / median(host.call(single_seconds, queries, cell.k, budget, threads=cell.threads))
    batch = queries[:count]
    return count / median(host.call(batches_seconds, batch, cell.k, settings.seconds, threads=cell.threads))
