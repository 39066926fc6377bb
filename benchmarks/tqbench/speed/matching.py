"""The fastest rival of every cell against the fastest of ours that finds as much in as few bytes, at any width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Match", "matches"]


@dataclass(frozen=True)
class Match:
    """The fastest rival of one cell, and what of ours can replace it.

    Attributes
    ----------
    place : tuple
        Set, d, n, nq, k, threads.
    bits : float
        Width of the rival.
    rival : str
        Its label.
    ours : str or None
        The fastest of our codes, of any width, with at least its recall and at most its bytes; None if there is none.
    ratio : float or None
        Our queries/s in the rival's.
    """

    place: tuple[str, int, int, int, int, int]
    bits: float
    rival: str
    ours: str | None
    ratio: float | None


@dataclass(frozen=True)
class _Entry:
    name: str
    rival: bool
    bits: float
    recall: float
    size: float
    qps: float


def matches(record: dict[str, Any]) -> list[Match]:
    """A match for every cell of every width that a rival took part in."""
    places: dict[tuple, list[_Entry]] = {}
    for group in record["results"]:
        for cell in group["cells"]:
            place = (group["set"], group["d"], group["n"], cell["nq"], cell["k"], cell["threads"])
            places.setdefault(place, []).extend(_entries(group, cell))
    found = []
    for place, entries in places.items():
        for bits in sorted({entry.bits for entry in entries}):
            rivals = [entry for entry in entries if entry.rival and entry.bits == bits]
            if not rivals:
                continue
            fastest = max(rivals, key=lambda entry: entry.qps)
            able = [
                entry
                for entry in entries
                if not entry.rival and entry.recall >= fastest.recall and entry.size <= fastest.size
            ]
            best = max(able, key=lambda entry: entry.qps, default=None)
            ours = None if best is None else f"{best.name} at {best.bits:g} bits"
            ratio = None if best is None else best.qps / fastest.qps
            found.append(Match(place, bits, fastest.name, ours, ratio))
    return found


def _entries(group: dict[str, Any], cell: dict[str, Any]) -> list[_Entry]:
    return [
        _Entry(
            row["label"],
            row["family"] != "tqann",
            group["bits"],
            row["recall_10_at_10"],
            row["bytes_per_vector"],
            cell["qps"][row["method"]][0],
        )
        for row in group["methods"]
        if row["status"] == "ok"
    ]
