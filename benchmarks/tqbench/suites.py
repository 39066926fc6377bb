"""The suites of `tq bench`: each turns options into one record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import BenchError
from .methods import expand
from .progress import progress_bar
from .records import new_record
from .sources import SourceOptions, load_source

__all__ = ["run_ann"]


def run_ann(
    source: str,
    options: SourceOptions,
    *,
    methods: tuple[str, ...] = (),
    bits: tuple[float, ...] = (),
    quick: bool = False,
    k: int = 10,
    repeats: int = 3,
    threads: int = 0,
    memory: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compare methods on one source and return the record.

    Raises
    ------
    BenchError
        For an option outside its rules, and for what a source is missing.
    """
    from .machine import available_cores
    from .runner import RunSettings, run_groups

    for name, value, low in (("k", k, 1), ("repeats", repeats, 1), ("threads", threads, 0)):
        if value < low:
            raise BenchError(f"{name} must be at least {low}, got {value}")
    groups = expand(methods, bits, quick)
    data = load_source(source, options)
    if k > len(data.base):
        raise BenchError(f"k must be at most the {len(data.base)} base vectors, got {k}")
    settings = RunSettings(k=k, repeats=repeats, threads=threads or available_cores(), memory=memory)
    with progress_bar(quiet) as bar:
        task = bar.add_task("tq bench ann", total=None, detail="")
        rows = run_groups(
            data,
            groups,
            settings,
            lambda what, done, total: bar.update(task, completed=done, total=total, detail=what),
        )
    return new_record(
        "ann",
        dataset={
            "name": data.name,
            "description": data.description,
            "n": len(data.base),
            "nq": len(data.queries),
            "d": data.d,
            "metric": data.metric,
            "held_out": 0 if data.held_out is None else len(data.held_out),
            "squared_mean": round(data.squared_mean, 4),
            "options": {name: _short(value) for name, value in asdict(options).items()},
        },
        settings=asdict(settings),
        results=rows,
    )


def _short(value: Any) -> Any:
    """Paths lose their folders: a record may travel."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
