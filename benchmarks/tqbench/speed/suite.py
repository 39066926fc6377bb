"""`tq bench speed`: a grid becomes one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..errors import BenchError
from ..groundtruth import ground_truth
from ..progress import progress_bar
from ..records import new_record
from ..sources import SourceOptions
from .cells import RECALL_DEPTH, SpeedSettings, run_group
from .grid import Grid, cases_of, lower_cases
from .limits import machine_limits
from .sets import speed_sets
from .standing import code_bytes
from .updates import UpdateSettings, run_updates

__all__ = ["run_speed", "update_settings"]


def update_settings(
    full: bool = False, rows: int | None = None, threads: int = 2, methods: Sequence[str] = ()
) -> UpdateSettings:
    """The updates of a quick or a full run; `rows` replaces the vectors of both its indexes.

    Where `methods` are chosen, builds are beside those of them alone, so without FAISS PQ, which trains for minutes.

    Raises
    ------
    BenchError
        For fewer than 100 rows.
    """
    if rows is not None and rows < 100:
        raise BenchError(f"updates-n must be at least 100, got {rows}")
    rivals = tuple(name for name in UpdateSettings.rivals if not methods or name in methods)
    made = UpdateSettings(threads=threads, rows=100_000 if full else UpdateSettings.rows, rivals=rivals)
    return made if rows is None else replace(made, rows=rows, thread_rows=rows)


def run_speed(
    grid: Grid,
    options: SourceOptions | None = None,
    *,
    methods: Sequence[str] = (),
    settings: SpeedSettings | None = None,
    updates: UpdateSettings | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a grid and return the record.

    Parameters
    ----------
    grid : Grid
    options : SourceOptions, optional
        Seed, and files for the real embeddings.
    methods : sequence of str
        Among `SPEED_METHODS`; none means all.
    settings : SpeedSettings, optional
    updates : UpdateSettings, optional
        None leaves the updates out.
    quiet : bool
        No progress bar.

    Raises
    ------
    BenchError
        For an option outside its rules, and where nothing is left to measure.
    """
    options, settings = options or SourceOptions(), settings or SpeedSettings()
    if settings.repeats < 1:
        raise BenchError(f"repeats must be at least 1, got {settings.repeats}")
    cases = {bits: cases_of(bits, methods) for bits in grid.bits}
    empty = [f"{bits:g}" for bits, own in cases.items() if not own]
    if empty:
        raise BenchError(f"bits {', '.join(empty)} is offered by none of the chosen methods")
    results: list[dict[str, Any]] = []
    with progress_bar(quiet) as bar:
        task = bar.add_task("tq bench speed", total=None, detail="")

        def say(what: str) -> None:
            bar.update(task, advance=1, detail=what)

        queries = max(settings.recall_queries, *grid.nq)
        for name, data in speed_sets(grid, queries, options):
            lower = {bits: lower_cases(bits, data.d, methods) for bits in grid.bits}
            builds = [*cases.values(), *(widths for codes in lower.values() for widths in codes)]
            steps = sum(map(len, builds)) + len(grid.bits) * len(grid.cells)
            bar.update(task, completed=0, total=steps, detail=f"{data.name}: exact neighbours")
            asked = data.queries[: settings.recall_queries]
            truth = ground_truth(data.base, asked, RECALL_DEPTH, data.metric)
            for bits, own in cases.items():
                group = run_group(data, truth, bits, own, lower[bits], grid, settings, say)
                described = {"set": name, "name": data.name, "description": data.description}
                results.append({**described, "metric": data.metric, **group})
        bar.update(task, completed=0, total=None, detail="read bandwidth")
        sizes = {code_bytes(group["n"], group["d"], group["bits"]) for group in results}
        limits = machine_limits(tuple(sizes))
        measured = None if updates is None else run_updates(updates, options.seed, say)
    if not results:
        raise BenchError("nothing to measure: no set of the grid has the dimensions asked for")
    return new_record(
        "speed",
        settings={
            **asdict(settings),
            "grid": {name: list(values) for name, values in asdict(grid).items()},
            "updates": None if updates is None else asdict(updates),
        },
        limits=limits,
        updates=measured,
        results=results,
    )
