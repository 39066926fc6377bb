"""The README's tables, generated from the records in benchmarks/results: `python -m tqbench.tables`.

Run it at the root of a checkout.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .device_tables import DEVICE_TABLES
from .display import group_rows
from .errors import BenchError
from .everything.report import CLAIM_TABLES
from .records import read_record, read_records
from .speed.tables import SPEED_TABLES
from .standing import standings

__all__ = ["SHORT", "TABLES", "TRAINED", "main", "render", "update"]

_BLOCK = re.compile(
    r"(<!-- table:(?P<name>[a-z0-9_.-]+) -->\n)(?P<body>.*?)(<!-- /table:(?P=name) -->)", re.DOTALL
)


def _comparison(record: dict[str, Any]) -> str:
    """All methods of a record, one table for all widths."""
    k, t = record["settings"]["k"], record["settings"]["threads"]
    head = [
        "bits",
        "method",
        "bytes",
        f"recall {k}@{k}",
        "train s",
        "add s",
        "one query, 1 thread, ms",
        f"queries/s, {t} threads",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * 2 + "---:|" * (len(head) - 2)]
    for bits, rows in group_rows(record).items():
        measured = [row for row in rows if row["status"] == "ok"]
        top = max((row[f"recall_{k}_at_{k}"] for row in measured), default=0.0)
        for row in measured:
            recall = f"{row[f'recall_{k}_at_{k}']:.3f}"
            name = f"**{row['label']}**" if row["method"] == "chain" else row["label"]
            cells = [
                "exact" if bits >= 32 else f"{bits:g}",
                name,
                f"{row['bytes_per_vector']:.0f}",
                f"**{recall}**" if row[f"recall_{k}_at_{k}"] == top and len(measured) > 1 else recall,
                f"{row['train_seconds']:.2f}",
                f"{row['add_seconds']:.3f}",
                f"{row['latency_ms_p50']:.3f}",
                f"{row['qps_all_threads']:,.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _origin(record)])


def _recall(record: dict[str, Any]) -> str:
    """Recall of every method by width: a method a row, a width a column."""
    k = record["settings"]["k"]
    rows = [row for row in record["results"] if row["bits"] < 32]
    widths = sorted({row["bits"] for row in rows})
    lines = [
        "| method | " + " | ".join(f"{bits:g} bits" for bits in widths) + " |",
        "|---|" + "---:|" * len(widths),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row["bits"]: row for row in rows if row["method"] == method}
        if all(row["status"] != "ok" for row in own.values()):
            continue
        cells = []
        for bits in widths:
            row = own.get(bits)
            ok = row is not None and row["status"] == "ok"
            cells.append(
                f"{row[f'recall_{k}_at_{k}']:.3f} ({row['bytes_per_vector']:.0f} B)" if row and ok else "-"
            )
        label = next(iter(own.values()))["label"]
        lines.append(f"| {'**' + label + '**' if method == 'chain' else label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _origin(record)])


def _headline(record: dict[str, Any]) -> str:
    """Our default code beside the best code that needs no training, and beside trained PQ."""
    k, t = record["settings"]["k"], record["settings"]["threads"]
    recall = f"recall_{k}_at_{k}"
    lines = [
        f"| bits | **tqann chain**, recall {k}@{k} | build | queries/s, {t} threads "
        "| best rival without training | FAISS PQ | its train + add | its queries/s |",
        "|---|---|---:|---:|---|---|---:|---:|",
    ]
    for bits, rows in group_rows(record).items():
        measured = {row["method"]: row for row in rows if row["status"] == "ok"}
        ours, product = measured.get("chain"), measured.get("pq")
        rivals = [r for r in measured.values() if r["family"] != "tqann" and r["method"] not in TRAINED]
        if ours is None or not rivals:
            continue
        best = max(rivals, key=lambda r: r[recall])
        cells = [
            f"{bits:g}",
            f"**{_recall_cell(ours, recall)}**",
            _build(ours),
            f"{ours['qps_all_threads']:,.0f}",
        ]
        cells.append(
            f"{_recall_cell(best, recall)} {best['label']}, {best['qps_all_threads']:,.0f} queries/s"
        )
        if product is None:
            cells += ["-", "-", "-"]
        else:
            cells += [_recall_cell(product, recall), _build(product), f"{product['qps_all_threads']:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _origin(record)])


def _recall_cell(row: dict[str, Any], recall: str) -> str:
    return f"{row[recall]:.3f} ({row['bytes_per_vector']:.0f} B)"


def _build(row: dict[str, Any]) -> str:
    return f"{row['train_seconds'] + row['add_seconds']:.2f} s"


def _standing(record: dict[str, Any]) -> str:
    """Where we win and where we lose, in words."""
    return "\n".join(f"- {line}" for line in standings(record))


def _origin(record: dict[str, Any]) -> str:
    data, machine, settings = record["dataset"], record["machine"], record["settings"]
    return (
        f"{data['n']:,} x {data['d']}, {data['nq']:,} queries, metric {data['metric']}; {machine['cpu']}, "
        f"{machine['cores']} cores, {settings['threads']} threads, median of {settings['repeats']} repeats, "
        f"{record['created'][:10]}; `{record['command']}`."
    )


# methods whose training is the point of the comparison
TRAINED = frozenset({"pq", "pq-held-out", "pq-fs", "opq", "flat"})
# kind of table -> how it is made; a marker names "KIND.RECORD", the record being a file of the results folder
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "headline": _headline,
    "comparison": _comparison,
    "recall": _recall,
    "standing": _standing,
    **SPEED_TABLES,
    **{kind: made for kind, (_, made) in DEVICE_TABLES.items()},
    **CLAIM_TABLES,
}


# short marker -> kind, and the records of which the first that exists is shown
SHORT: dict[str, tuple[str, tuple[str, ...]]] = {
    "headline": ("headline", ("ann-wiki-minilm", "ann-sample")),
    "ann": ("comparison", ("ann-wiki-minilm", "ann-sample")),
}


def render(name: str, results: Path) -> str:
    """The table that a marker names: "KIND.RECORD", or one of `SHORT`, empty without a record.

    Raises
    ------
    BenchError
        For an unknown kind or an absent record.
    """
    if name in SHORT:
        kind, candidates = SHORT[name]
        present = [record for record in candidates if (results / f"{record}.json").is_file()]
        return TABLES[kind](read_record(results / f"{present[0]}.json")) if present else ""
    kind, _, record = name.partition(".")
    if kind not in TABLES:
        kinds = ", ".join(TABLES)
        raise BenchError(
            f"table must be KIND.RECORD, KIND one of {kinds}, or {', '.join(SHORT)}; got {name!r}"
        )
    path = results / f"{record}.json"
    if not path.is_file():
        known = ", ".join(read_records(results)) or "none"
        raise BenchError(f"no record {record!r} for table {name!r}; {results.name} has {known}")
    made_of, suite = read_record(path), _suite(kind)
    if made_of["suite"] != suite:
        raise BenchError(f"table {name!r} needs a record of {suite}, got one of {made_of['suite']}")
    return TABLES[kind](made_of)


def _suite(kind: str) -> str:
    if kind in DEVICE_TABLES:
        return DEVICE_TABLES[kind][0]
    if kind in CLAIM_TABLES:
        return "all"
    return "speed" if kind in SPEED_TABLES else "ann"


def update(text: str, results: Path) -> str:
    """`text` with every marked table made again from the records."""

    def replaced(match: re.Match[str]) -> str:
        table = render(match["name"], results)
        return f"{match[1]}{table}\n{match[4]}" if table else f"{match[1]}{match[4]}"

    return _BLOCK.sub(replaced, text)


def main(argv: list[str] | None = None) -> int:
    """Regenerate the tables of the given files; with --check only compare, and return 1 when one differs."""
    parser = argparse.ArgumentParser(prog="python -m tqbench.tables", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, default=[Path("README.md")])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a table differs")
    arguments = parser.parse_args(argv)
    differ = []
    try:
        for file in arguments.files:
            old = file.read_text(encoding="utf-8")
            new = update(old, arguments.results)
            if new != old and arguments.check:
                differ.append(file.name)
            elif new != old:
                file.write_text(new, encoding="utf-8")
    except (OSError, BenchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if differ:
        print(
            f"tables differ from the records in {', '.join(differ)}: run python -m tqbench.tables",
            file=sys.stderr,
        )
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
