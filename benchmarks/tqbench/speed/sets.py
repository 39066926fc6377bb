"""The vectors of a speed run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..errors import BenchError
from ..sources import SourceOptions, load_source
from ..sources.dataset import Dataset
from ..sources.generated import gaussian_rows
from .grid import Grid

__all__ = ["speed_sets"]


def speed_sets(grid: Grid, queries: int, options: SourceOptions) -> Iterator[tuple[str, Dataset]]:
    """(name of the set, vectors) for every set, d and n of a grid, one at a time.

    Parameters
    ----------
    grid : Grid
    queries : int
        Queries a set, where it has as many.
    options : SourceOptions
        With `base`, the real embeddings come from files and take part whatever their `d`; otherwise they are
        the sample in the package and take part where the grid has its `d`.
    """
    for name in grid.sets:
        if name == "real":
            yield from (("real", data) for data in _real(grid, queries, options))
            continue
        for d in grid.d:
            for n in grid.n:
                x = gaussian_rows(name, n + queries, d, options.seed)
                description = f"synthetic {name} unit vectors, d = {d}, seed {options.seed}"
                yield name, Dataset(f"{name}-{d}", description, x[:n], x[n:], "ip")


def _real(grid: Grid, queries: int, options: SourceOptions) -> Iterator[Dataset]:
    if options.base:  # unit vectors, which every rival can take
        options = replace(options, metric=options.metric or "cosine")
    whole = load_source("file" if options.base else "sample", replace(options, nq=queries))
    if not options.base and whole.d not in grid.d:
        if grid.sets == ("real",):
            raise BenchError(f"the real embeddings have d = {whole.d}; give others by --base")
        return
    whole = whole.prepared()
    for n in dict.fromkeys(min(n, len(whole.base)) for n in grid.n):
        base = whole.base[:n]
        yield Dataset(whole.name, whole.description, base, whole.queries, whole.metric)
