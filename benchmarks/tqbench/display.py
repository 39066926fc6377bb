"""The comparison on the terminal: one table per bit width, and in words where we stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .standing import standings, width_name

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["COLUMNS", "group_rows", "print_record"]

# key in a row, heading, decimals, whether the largest value is the best, width from which it is shown
COLUMNS: tuple[tuple[str, str, int, bool, int], ...] = (
    ("bytes_per_vector", "B/vec", 0, False, 0),
    ("recall_1_at_1", "1@1", 3, True, 110),
    ("recall_1_at_{k}", "1@{k}", 3, True, 110),
    ("recall_{k}_at_{k}", "{k}@{k}", 3, True, 0),
    ("train_seconds", "train s", 2, False, 0),
    ("add_seconds", "add s", 3, False, 0),
    ("latency_ms_p50", "1q ms", 3, False, 0),
    ("latency_ms_p99", "p99", 3, False, 110),
    ("qps_1_thread", "q/s 1T", 0, True, 96),
    ("qps_all_threads", "q/s {t}T", 0, True, 0),
)


def group_rows(record: dict[str, Any]) -> dict[float, list[dict[str, Any]]]:
    """Result rows by bits per dimension; ours first, then by recall."""
    k = record["settings"]["k"]
    groups: dict[float, list[dict[str, Any]]] = {}
    for row in record["results"]:
        groups.setdefault(row["bits"], []).append(row)

    def place(row: dict[str, Any]) -> tuple[bool, bool, float]:
        return row["family"] != "tqann", row["status"] != "ok", -row.get(f"recall_{k}_at_{k}", 0.0)

    return {bits: sorted(rows, key=place) for bits, rows in groups.items()}


def print_record(record: dict[str, Any], console: Console) -> None:
    """Print what was measured, the tables, and the standing of the default code at each width."""
    from rich.markup import escape
    from rich.table import Table

    data, settings, machine = record["dataset"], record["settings"], record["machine"]
    k, t = settings["k"], settings["threads"]
    console.print(
        f"[bold]{escape(data['name'])}[/]: {escape(data['description'])}\n"
        f"{data['n']:,} x {data['d']}, {data['nq']:,} queries, metric {data['metric']}, k = {k}, "
        f"squared mean {data['squared_mean']:.3f}\n"
        f"[dim]{escape(machine['cpu'])}, {machine['cores']} cores, {t} threads; median of "
        f"{settings['repeats']} interleaved repeats[/]"
    )
    columns = [column for column in COLUMNS if console.width >= column[4]]
    for bits, rows in group_rows(record).items():
        width = f"{width_name(bits)} per dimension, {data['d'] * bits / 8:g} bytes of code"
        title = width if bits < 32 else "exact"
        table = Table(title=title, title_justify="left", title_style="bold", expand=False, pad_edge=False)
        table.add_column("method", overflow="fold", max_width=40)
        for _, heading, *_ in columns:
            table.add_column(heading.format(k=k, t=t), justify="right", no_wrap=True)
        best = _best(rows, columns, k)
        for row in rows:
            style = "bold cyan" if row["family"] == "tqann" else ""
            if row["status"] != "ok":
                table.add_row(f"[dim]{escape(row['label'])}: skipped, {escape(row['reason'])}[/]")
                continue
            cells = [
                _cell(row, key.format(k=k), decimals, best if len(rows) > 1 else {})
                for key, _, decimals, *_ in columns
            ]
            table.add_row(f"[{style}]{escape(row['label'])}[/]" if style else escape(row["label"]), *cells)
        console.print(table)
    for line in standings(record):
        console.print(escape(line), highlight=False)


def _best(rows: list[dict[str, Any]], columns: list[tuple], k: int) -> dict[str, float]:
    best = {}
    for pattern, _, _, largest, _ in columns:
        key = pattern.format(k=k)
        values = [row[key] for row in rows if row["status"] == "ok"]
        if values:
            best[key] = max(values) if largest else min(values)
    return best


def _cell(row: dict[str, Any], key: str, decimals: int, best: dict[str, float]) -> str:
    value = row[key]
    text = f"{value:,.{decimals}f}"
    return f"[bold green]{text}[/]" if best.get(key) == value else text
