"""The fastest rival of every cell against the fastest of ours that finds as much in as few bytes, at any width.

Lower widths of ours are measured beside the rivals; in older records, whose rows name no bits, they are other groups'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import median
from .standing import OURS

__all__ = ["FAMILIES", "Match", "MatchSummary", "match_summaries", "matches", "side_by_side"]

# codes that are compared apart
FAMILIES = {
    "tqann oblivious": ("chain", "chain-unit", "chain-unit-m3", "layered"),
    "tqann calibrated": ("calibrated",),
}


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
class MatchSummary:
    """The ratios of some of our codes over all cells; `unmatched` counts those without one."""

    label: str
    cells: int
    median: float | None
    lowest: float | None
    leads: int
    unmatched: int


@dataclass(frozen=True)
class _Entry:
    name: str
    code: str
    rival: bool
    bits: float
    group: float
    recall: float
    size: float
    qps: float


def side_by_side(record: dict[str, Any]) -> bool:
    """Whether lower widths of ours were measured beside the rivals."""
    return any("bits" in row for group in record["results"] for row in group["methods"])


def matches(record: dict[str, Any], codes: Sequence[str] = OURS) -> list[Match]:
    """A match, with one of `codes`, for every cell of every width that a rival took part in."""
    beside = side_by_side(record)
    places: dict[tuple, list[_Entry]] = {}
    for group in record["results"]:
        for cell in group["cells"]:
            place = (group["set"], group["d"], group["n"], cell["nq"], cell["k"], cell["threads"])
            places.setdefault(place, []).extend(_entries(group, cell))
    found = []
    for place, entries in places.items():
        for bits in sorted({entry.group for entry in entries}):
            rivals = [entry for entry in entries if entry.rival and entry.group == bits]
            if not rivals:
                continue
            fastest = max(rivals, key=lambda entry: entry.qps)
            able = [
                entry
                for entry in entries
                if entry.code in codes
                and entry.recall >= fastest.recall
                and entry.size <= fastest.size
                and (entry.group == bits or not beside)
            ]
            best = max(able, key=lambda entry: entry.qps, default=None)
            ours = None if best is None else f"{best.name} at {best.bits:g} bits"
            ratio = None if best is None else best.qps / fastest.qps
            found.append(Match(place, bits, fastest.name, ours, ratio))
    return found


def match_summaries(record: dict[str, Any]) -> list[MatchSummary]:
    """One summary for each of `FAMILIES`."""
    made = []
    for label, codes in FAMILIES.items():
        found = matches(record, codes)
        if not any(_code(row, group) in codes for group in record["results"] for row in group["methods"]):
            continue
        ratios = [match.ratio for match in found if match.ratio is not None]
        made.append(
            MatchSummary(
                label=label,
                cells=len(found),
                median=median(ratios) if ratios else None,
                lowest=min(ratios, default=None),
                leads=sum(ratio >= 1 for ratio in ratios),
                unmatched=len(found) - len(ratios),
            )
        )
    return made


def _code(row: dict[str, Any], group: dict[str, Any]) -> str:
    """The method of a row; a lower width is part of its name."""
    return row["method"].removesuffix(f"-{row.get('bits', group['bits']):g}")


def _entries(group: dict[str, Any], cell: dict[str, Any]) -> list[_Entry]:
    return [
        _Entry(
            row["label"],
            _code(row, group),
            row["family"] != "tqann",
            row.get("bits", group["bits"]),
            group["bits"],
            row["recall_10_at_10"],
            row["bytes_per_vector"],
            cell["qps"][row["method"]][0],
        )
        for row in group["methods"]
        if row["status"] == "ok"
    ]
