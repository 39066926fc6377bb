"""Where our codes stand in every cell: ratios against the fastest rival, from a record alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..metrics import median
from .limits import LINE, SCAN_COSTS

__all__ = ["OURS", "Rival", "Standing", "Summary", "code_bytes", "shares", "standings", "summaries"]

OURS = ("chain", "chain-unit", "layered", "calibrated")
TOLERANCE = 0.005  # recall that a rival may lack and still be compared with as an equal


@dataclass(frozen=True)
class Rival:
    """A rival in one cell."""

    label: str
    qps: float
    recall: float


@dataclass(frozen=True)
class Standing:
    """One of our codes in one cell.

    Attributes
    ----------
    set, d, n, bits, nq, k, threads
        The cell.
    method, label, bytes_per_vector, recall, qps
        Ours; recall is 10@10 whatever `k`.
    fastest : Rival
        The fastest of all.
    equal : Rival or None
        The fastest whose recall is at least ours less `TOLERANCE`; None where no rival finds as much.
    """

    set: str
    d: int
    n: int
    bits: float
    nq: int
    k: int
    threads: int
    method: str
    label: str
    bytes_per_vector: float
    recall: float
    qps: float
    fastest: Rival
    equal: Rival | None

    @property
    def ratio(self) -> float:
        """Our speed in that of the fastest rival."""
        return self.qps / self.fastest.qps

    @property
    def equal_ratio(self) -> float | None:
        """Our speed in that of the fastest rival of equal recall."""
        return None if self.equal is None else self.qps / self.equal.qps


@dataclass(frozen=True)
class Summary:
    """The ratios of one of our codes over all cells.

    `unmatched` counts cells where no rival has our recall, `outfound` those where the fastest rival finds more.
    """

    label: str
    cells: int
    median: float
    lowest: float
    leads: int
    outfound: int
    equal_median: float | None
    equal_lowest: float | None
    equal_leads: int
    unmatched: int


@dataclass(frozen=True)
class Share:
    """What part of the machine's limits one of our codes reaches at one thread.

    `memory` and `same_size` compare the code bytes read per second with a plain read past the last-level cache and of
    as many bytes as the codes have; only a single query reads all codes once. `instructions` compares with the
    fewest cycles.
    """

    set: str
    d: int
    n: int
    bits: float
    nq: int
    label: str
    gb_s: float
    memory: float | None
    same_size: float | None
    instructions: float | None


def _measured(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(group, cell, rows of methods by name) of every cell."""
    for group in record["results"]:
        rows = {row["method"]: row for row in group["methods"] if row["status"] == "ok"}
        for cell in group["cells"]:
            yield group, cell, rows


def standings(record: dict[str, Any]) -> list[Standing]:
    """Every cell of every one of our codes that had a rival beside it."""
    found = []
    for group, cell, rows in _measured(record):
        speed = {name: values[0] for name, values in cell["qps"].items()}
        rivals = [
            Rival(row["label"], speed[name], row["recall_10_at_10"])
            for name, row in rows.items()
            if row["family"] != "tqann" and name in speed
        ]
        for name in OURS:
            if name not in speed or not rivals:
                continue
            row = rows[name]
            near = [r for r in rivals if r.recall >= row["recall_10_at_10"] - TOLERANCE]
            found.append(
                Standing(
                    set=group["set"],
                    d=group["d"],
                    n=group["n"],
                    bits=group["bits"],
                    nq=cell["nq"],
                    k=cell["k"],
                    threads=cell["threads"],
                    method=name,
                    label=row["label"],
                    bytes_per_vector=row["bytes_per_vector"],
                    recall=row["recall_10_at_10"],
                    qps=speed[name],
                    fastest=max(rivals, key=lambda r: r.qps),
                    equal=max(near, key=lambda r: r.qps, default=None),
                )
            )
    return found


def summaries(found: list[Standing]) -> list[Summary]:
    """One summary a code, oblivious and calibrated apart."""
    made = []
    for name in OURS:
        own = [s for s in found if s.method == name]
        if not own:
            continue
        ratios = [s.ratio for s in own]
        equal = [s.equal_ratio for s in own if s.equal_ratio is not None]
        made.append(
            Summary(
                label=own[0].label,
                cells=len(own),
                median=median(ratios),
                lowest=min(ratios),
                leads=sum(r >= 1 for r in ratios),
                outfound=sum(s.fastest.recall > s.recall for s in own),
                equal_median=median(equal) if equal else None,
                equal_lowest=min(equal, default=None),
                equal_leads=sum(r >= 1 for r in equal),
                unmatched=len(own) - len(equal),
            )
        )
    return made


def shares(record: dict[str, Any]) -> list[Share]:
    """Shares of the limits of our full scans at one thread and the smallest `k`."""
    limits = record["limits"]
    found = []
    smallest = min((cell["k"] for _, cell, _ in _measured(record)), default=0)
    for group, cell, rows in _measured(record):
        if cell["threads"] != 1 or cell["k"] != smallest:
            continue
        size = code_bytes(group["n"], group["d"], group["bits"])
        for name in ("chain", "calibrated"):
            if name not in cell["qps"]:
                continue
            speed = size * cell["qps"][name][0]
            single = cell["nq"] == 1
            same = limits["same_size_gb_s"].get(str(size))
            cost = SCAN_COSTS.get((limits["simd"], 1 if single else 4))
            clock = limits["clock_ghz"]
            found.append(
                Share(
                    group["set"],
                    group["d"],
                    group["n"],
                    group["bits"],
                    cell["nq"],
                    rows[name]["label"],
                    speed / 1e9,
                    speed / 1e9 / limits["read_gb_s"] if single else None,
                    speed / 1e9 / same if single and same else None,
                    speed / LINE * cost.cycles / (clock * 1e9) if cost and clock else None,
                )
            )
    return found


def code_bytes(n: int, d: int, bits: float) -> int:
    """Bytes of the codes of `n` vectors as the scan reads them: whole words of whole blocks."""
    words = -(-int(-(-d * bits // 8)) // 4)
    return -(-n // 16) * 16 * words * 4
