"""The grid of `tq bench speed` as data: which cells are measured, and with which methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from ..errors import BenchError
from ..methods import METHODS, Case, Method

__all__ = ["FULL", "QUICK", "SETS", "SPEED_METHODS", "Cell", "Grid", "cases_of", "lower_cases", "make_grid"]

SETS = ("real", "isotropic", "uncentred")
# method -> widths at which it takes part, None for all that it offers
SPEED_METHODS: dict[str, tuple[float, ...] | None] = {
    "chain": None,
    "chain-unit": None,
    "chain-unit-m3": (1,),  # where a trained code can find more than memory 2 does in as few bytes
    "layered": None,
    "calibrated": None,
    "turbovec": None,
    "turbovec-full": None,
    "pq-fs": None,
    "rabitq-fs": None,
    "sq": None,
    "sqtqmse": (1, 2, 3),  # at 4 and 8 bits FAISS's plain scalar quantizer is as large and faster
    "rabitqlib": None,
}


@dataclass(frozen=True)
class Cell:
    """One figure of search speed for every method of a group."""

    nq: int
    k: int
    threads: int


@dataclass(frozen=True)
class Grid:
    """What is measured: every combination of these.

    Attributes
    ----------
    sets : tuple of str
        Among `SETS`; "real" are embeddings, which have a `d` and an `n` of their own.
    d, bits, n : tuple
        Dimensions, bits per dimension, base rows.
    nq, k, threads : tuple
        Queries a call, neighbours, threads.
    """

    sets: tuple[str, ...] = SETS
    d: tuple[int, ...] = (384,)
    bits: tuple[float, ...] = (2, 4)
    n: tuple[int, ...] = (40_000,)
    nq: tuple[int, ...] = (1, 256)
    k: tuple[int, ...] = (10,)
    threads: tuple[int, ...] = (1, 2)

    @property
    def cells(self) -> list[Cell]:
        """Cells of one group."""
        return [Cell(*values) for values in product(self.nq, self.k, self.threads)]


QUICK = Grid()
FULL = Grid(
    d=(128, 384, 768, 1536), bits=(1, 2, 3, 4, 8), n=(100_000,), nq=(1, 16, 256), k=(10, 100), threads=(1, 2)
)


def make_grid(full: bool = False, **chosen: Sequence[Any]) -> Grid:
    """`QUICK` or `FULL`, each axis that is named and not empty replaced.

    Raises
    ------
    BenchError
        For an unknown set and for values that are not positive, not whole, or below 8 dimensions.
    """
    axes = {name: tuple(dict.fromkeys(values)) for name, values in chosen.items() if values}
    unknown = [name for name in axes.get("sets", ()) if name not in SETS]
    if unknown:
        raise BenchError(f"sets must be among {', '.join(SETS)}, got {', '.join(unknown)}")
    for axis in fields(Grid):
        values = axes.get(axis.name, ())
        low = 8 if axis.name == "d" else 1
        if axis.name in ("sets", "bits"):
            continue
        if any(value != int(value) or value < low for value in values):
            given = ", ".join(f"{value:g}" for value in values)
            raise BenchError(f"{axis.name} must be whole numbers of at least {low}, got {given}")
        if values:
            axes[axis.name] = tuple(int(value) for value in values)
    return replace(FULL if full else QUICK, **axes)


def cases_of(bits: float, names: Sequence[str] = ()) -> list[Case]:
    """The cases of one width, in the order of `SPEED_METHODS`.

    Raises
    ------
    BenchError
        For a method that takes no part.
    """
    unknown = [name for name in names if name not in SPEED_METHODS]
    if unknown:
        raise BenchError(f"methods must be among {', '.join(SPEED_METHODS)}, got {', '.join(unknown)}")
    chosen = [name for name in SPEED_METHODS if not names or name in names]
    return [
        Case(METHODS[name], bits)
        for name in chosen
        if bits in METHODS[name].bits and bits in (SPEED_METHODS[name] or METHODS[name].bits)
    ]


def lower_cases(bits: float, d: int, names: Sequence[str] = ()) -> list[list[Case]]:
    """Our codes below one width, of those that take part at every width: a list a code, its widths falling.

    They can have any width, so the first of those with a scale is that at which a vector takes ``d * bits / 8`` bytes.
    """
    ours = [
        METHODS[name] for name, bits in SPEED_METHODS.items() if METHODS[name].family == "tqann" and not bits
    ]
    chosen = [method for method in ours if not names or method.name in names]
    return [
        [
            Case(method, b)
            for b in sorted(_widths(method, bits, d), reverse=True)
            if min(method.bits) <= b < bits
        ]
        for method in chosen
    ]


def _widths(method: Method, bits: float, d: int) -> tuple[float, ...]:
    return method.bits if method.options.get("scale") == "none" else (*method.bits, bits - 32 / d)
