"""What a speed record says, as plain tables; terminal, HTML page and README render the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..metrics import median
from .matching import MatchSummary, match_summaries, matches, side_by_side
from .standing import Rival, Standing, Summary, shares, standings, summaries

__all__ = [
    "SPEED_TABLES",
    "Table",
    "cell_tables",
    "group_table",
    "limit_table",
    "match_summary_table",
    "match_table",
    "origin",
    "summary_table",
    "update_table",
]


@dataclass(frozen=True)
class Table:
    """A title, headings and rows of text; the first `left` columns are text."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int = 1


def _leads(s: Summary | MatchSummary) -> tuple[str, ...]:
    """What both summaries begin with."""
    return s.label, str(s.cells), _times(s.median), _times(s.lowest), f"{s.leads} of {s.cells}"


def summary_table(record: dict[str, Any]) -> Table:
    """Medians of the ratios, a code a row."""
    rows = [
        (
            *_leads(s),
            str(s.outfound),
            _times(s.equal_median),
            _times(s.equal_lowest),
            f"{s.equal_leads} of {s.cells - s.unmatched}",
            str(s.unmatched),
        )
        for s in summaries(standings(record))
    ]
    head = (
        "code",
        "cells",
        "median",
        "lowest",
        "at least 1",
        "rival finds more",
        "equal recall: median",
        "lowest",
        "at least 1",
        "no rival equals",
    )
    return Table(
        "Queries/s in those of the fastest rival, and of the fastest of equal recall, of each cell",
        head,
        rows,
    )


def cell_tables(record: dict[str, Any]) -> list[Table]:
    """Every cell of every code of ours, a table for each set, d and n."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    for s in standings(record):
        tables.setdefault(f"{s.set}, {s.n:,} x {s.d}", []).append(
            (
                f"{s.bits:g} bits, {_queries(s.nq)}, k {s.k}, {s.threads}T",
                s.method,
                f"{s.bytes_per_vector:.0f}",
                f"{s.recall:.3f}",
                _speed(s.qps),
                s.fastest.label,
                _points(s, s.fastest),
                _times(s.ratio),
                "none" if s.equal is None else s.equal.label,
                "-" if s.equal is None else _points(s, s.equal),
                _times(s.equal_ratio),
            )
        )
    head = (
        "cell",
        "code",
        "B/vec",
        "10@10",
        "q/s",
        "fastest rival",
        "its recall, points to ours",
        "ratio",
        "fastest at equal recall",
        "its recall, points to ours",
        "ratio",
    )
    return [Table(title, head, rows, left=2) for title, rows in tables.items()]


def match_table(record: dict[str, Any]) -> Table:
    """The fastest rival of every cell, and the fastest of ours with its recall and bytes or better."""
    found = matches(record)
    rows = []
    for m in found:
        name, d, n, nq, k, threads = m.place
        cell = f"{name}, {n:,} x {d}, {m.bits:g} bits, {_queries(nq)}, k {k}, {threads}T"
        rows.append((cell, m.rival, m.ours or "none", _times(m.ratio)))
    ratios = [m.ratio for m in found if m.ratio is not None]
    if ratios:
        told = f"{sum(r >= 1 for r in ratios)} of {len(found)} at least x1"
        rows.append((f"median, {told}", "", f"{len(found) - len(ratios)} without", _times(median(ratios))))
    title = "Fastest rival of each cell, and our fastest of any width that finds no less in no more bytes"
    return Table(title, ("cell", "fastest rival", "ours", "ratio"), rows, left=3)


def match_summary_table(record: dict[str, Any]) -> Table:
    """Medians of the ratios of `match_table`, oblivious codes and calibrated ones apart."""
    rows = [(*_leads(s), str(s.unmatched)) for s in match_summaries(record)]
    title = "Queries/s of our fastest code that finds no less in no more bytes, in those of each cell's fastest rival"
    if not side_by_side(record):
        title += "; of ours only the rivals' widths were measured"
    head = ("code", "cells", "median", "lowest", "at least 1", "none finds as much in as few bytes")
    return Table(title, head, rows)


def group_table(group: dict[str, Any]) -> Table:
    """Every method of a group: bytes, recall, build and the speed of each cell."""
    cells = group["cells"]
    head = ["method", "B/vec", "10@10", "train s", "add s"]
    head += [f"{c['nq']}q k{c['k']} {c['threads']}T, q/s" for c in cells]
    rows = []
    for row in group["methods"]:
        bits = row.get("bits", group["bits"])
        label = row["label"] if bits == group["bits"] else f"{row['label']}, {bits:g} bits"
        if row["status"] != "ok":
            rows.append((f"{label}: skipped, {row['reason']}", *[""] * (len(head) - 1)))
            continue
        speeds = [_speed(c["qps"][row["method"]][0]) for c in cells]
        rows.append(
            (
                label,
                f"{row['bytes_per_vector']:.0f}",
                f"{row['recall_10_at_10']:.3f}",
                f"{row['train_seconds']:.2f}",
                f"{row['add_seconds']:.2f}",
                *speeds,
            )
        )
    title = f"{group['set']}, {group['n']:,} x {group['d']}, {group['bits']:g} bits"
    return Table(title, tuple(head), rows)


def limit_table(record: dict[str, Any]) -> Table:
    """Shares of the machine's limits at one thread."""
    limits = record["limits"]
    rows = [
        (
            f"{s.set}, {s.n:,} x {s.d}",
            s.label,
            f"{s.bits:g}",
            _queries(s.nq),
            f"{s.gb_s:.1f}",
            _percent(s.memory),
            _percent(s.same_size),
            _percent(s.instructions),
        )
        for s in shares(record)
    ]
    clock = f"{limits['clock_ghz']} GHz nominal" if limits["clock_ghz"] else "an unknown clock"
    title = (
        f"Limits at one thread: a plain read of {limits['read_bytes'] / 2**30:.2g} GiB runs at "
        f"{limits['read_gb_s']} GB/s; {limits['simd']} kernels at {clock}"
    )
    head = (
        "set",
        "code",
        "bits",
        "call",
        "code bytes x queries, GB/s",
        "of the read",
        "of a read of as many bytes",
        "of the instruction limit",
    )
    return Table(title, head, rows, left=2)


def update_table(record: dict[str, Any]) -> Table | None:
    """Builds, single updates, filters and threads; None where they were not measured."""
    found = record["updates"]
    if found is None:
        return None
    s = record["settings"]["updates"]
    rows = []
    built = {row["method"]: row for row in found["builds"]}
    own = built["chain"]
    for row in found["builds"]:
        what = f"build of {s['rows']:,} x {s['d']} at {s['bits']:g} bits, {row['label']}"
        if row["status"] != "ok":
            rows.append((what, f"skipped, {row['reason']}", ""))
            continue
        total = row["train_seconds"] + row["add_seconds"]
        note = "" if row is own else f"{total / own['add_seconds']:.2f} times ours"
        rows.append((what, f"{total:.2f} s", note))
    rows.append(("add of one vector", f"{found['add_one_seconds'] * 1e6:.1f} us", ""))
    rows.append(("removal of one id, a call each", f"{found['remove_one_seconds'] * 1e6:.2f} us", ""))
    many = f"removal of one id, {found['remove_many']:,} in a call"
    rows.append((many, f"{found['remove_many_seconds'] * 1e6:.2f} us", ""))
    whole = found["filters"]["none"]
    for name in ("spread", "neighbouring"):
        seconds = found["filters"][name]
        what = f"one query, 1% allowed, {name} ids"
        rows.append((what, f"{seconds * 1e3:.3f} ms", f"{whole / seconds:.1f} times as fast as unfiltered"))
    rows += _thread_rows(found["threads"])
    return Table("Updates, filters and threads", ("what", "time", "ratio"), rows)


def _thread_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for nq, seconds in found["seconds"].items():
        one, *others = seconds.items()
        for threads, taken in others:
            # Older records have one index and no pairs.
            n = found["rows"][nq] if "ratios" in found else found["rows"]
            ratio = found["ratios"][nq][threads] if "ratios" in found else one[1] / taken
            what = f"{_queries(int(nq))} of {n:,} vectors, {threads} threads"
            rows.append((what, f"{taken * 1e3:.2f} ms", f"{ratio:.2f} times as fast as one"))
    one, *others = found.get("reads", {"1": 0.0}).items()
    for threads, taken in others:
        what = f"a plain read of the codes of these, {threads} threads"
        rows.append((what, f"{taken * 1e3:.2f} ms", f"{one[1] / taken:.2f} times as fast as one"))
    return rows


def markdown(record: dict[str, Any], table: Table | None) -> str:
    """A table for a README, with where it comes from."""
    if table is None:
        return "Not measured."
    rule = "---|" * table.left + "---:|" * (len(table.head) - table.left)
    lines = [table.title + ":", "", "| " + " | ".join(table.head) + " |", "|" + rule]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join([*lines, "", origin(record)])


def origin(record: dict[str, Any]) -> str:
    """What a record was measured on, in one line."""
    machine, settings = record["machine"], record["settings"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, median of {settings['repeats']} interleaved repeats, recall "
        f"over {settings['recall_queries']} queries, {record['created'][:10]}; `{record['command']}`."
    )


def _points(ours: Standing, rival: Rival) -> str:
    return f"{100 * (rival.recall - ours.recall):+.1f}"


def _queries(nq: int) -> str:
    return "one query" if nq == 1 else f"{nq} queries"


def _times(value: float | None) -> str:
    return "-" if value is None else f"x{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _speed(qps: float) -> str:
    return f"{qps:,.0f}" if qps >= 100 else f"{qps:.3g}"


def _cells_markdown(record: dict[str, Any]) -> str:
    return "\n\n".join(markdown(record, table) for table in cell_tables(record))


# kind of table in a README -> how it is made
SPEED_TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "speed": lambda record: markdown(record, summary_table(record)),
    "speed-matched": lambda record: markdown(record, match_summary_table(record)),
    "speed-cells": _cells_markdown,
    "speed-matches": lambda record: markdown(record, match_table(record)),
    "speed-limits": lambda record: markdown(record, limit_table(record)),
    "speed-updates": lambda record: markdown(record, update_table(record)),
}
