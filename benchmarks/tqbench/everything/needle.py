"""Needles from the packed cache beside full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..checks import Check, at_least
from ..kv.needle import FULL, wilson
from .context import Context
from .quoted import PAPER, REVIEW

__all__ = ["check_needle"]

GROUP = "Needle in a haystack"
_LOW = 2.0  # bits at which codes differ
_PLAIN = ("single", "multi-key", "uuid")  # what the probe was trained to answer without a fault
Row = dict[str, Any]


def check_needle(context: Context) -> tuple[list[Check], Row]:
    """Exact match at the required bits beside full precision, over all tasks and for each."""
    o = context.options
    bits, grid = tuple(dict.fromkeys((_LOW, o.needle_bits))), _grid(context)
    record = context.run("needle", bits=bits, code=("chain",), **grid)
    scalar = context.run("needle", bits=(_LOW,), code=("mse",), **grid)
    record["results"] += [row for row in scalar["results"] if row["cache"] != FULL]
    rows = [row for row in record["results"] if row["depth"] is None]
    required, low = f"chain-{o.needle_bits:g}", f"-{_LOW:g}"
    checks = []
    if context.is_probe:
        right, n = _right(rows, FULL, lambda row: row["task"] in _PLAIN)
        if n:
            checks.append(
                at_least(
                    GROUP,
                    "full precision: exact match of single, multi-key and UUID",
                    right / n,
                    0.98,
                    warn=0.95,
                    paper=PAPER["needle"],
                )
            )
    checks.append(
        _beside_full(
            rows, required, "all tasks", lambda _: True, paper=PAPER["needle"], review=REVIEW["needle"]
        )
    )
    checks += [
        # one task has few samples: by itself it may warn, not fail
        _beside_full(rows, required, task, lambda row, task=task: row["task"] == task, slack=1.0)
        for task in dict.fromkeys(row["task"] for row in rows)
    ]
    chain, n = _right(rows, f"chain{low}", lambda _: True)
    scalar, _ = _right(rows, f"mse{low}", lambda _: True)
    checks.append(
        at_least(
            GROUP,
            f"chain over the paper's mse at {_LOW:g} bits: difference of exact match",
            (chain - scalar) / n,
            0.0,
            warn=-0.05,
            reason=f"chain {chain / n:.3f}, mse {scalar / n:.3f}",
        )
    )
    return checks, record


def _grid(context: Context) -> dict[str, Any]:
    """Tasks, lengths, depths and samples that fit the time: minutes on two cores, longer texts on a GPU."""
    quick = context.options.quick
    if context.device_name:
        return {
            "lengths": (4096, 16384) if quick else (4096, 16384, 32768),
            "depths": (0.1, 0.5, 0.9)[:: 2 if quick else 1],
            "samples": 1,
        }
    if quick:
        tasks = ("single", "multi-key", "multi-value")
        return {"tasks": tasks, "lengths": (768,), "depths": (0.2, 0.7), "samples": 1}
    return {"lengths": (1024, 2048), "depths": (0.1, 0.5, 0.9), "samples": 1}


def _beside_full(
    rows: Iterable[Row],
    cache: str,
    what: str,
    wanted: Callable[[Row], bool],
    slack: float = 0.05,
    **quoted: str,
) -> Check:
    """PASS when exact match is not below the 95% interval of full precision; WARN when it is by less than `slack`."""
    rows = list(rows)
    full, n = _right(rows, FULL, wanted)
    found, _ = _right(rows, cache, wanted)
    low, _ = wilson(full, n)
    return at_least(
        GROUP,
        f"{cache}: exact match, {what}",
        found / n,
        low,
        warn=max(0.0, low - slack),
        theory=full / n,
        reason=f"theory: full precision, {full} of {n}; the limit is the low end of its 95% interval",
        **quoted,
    )


def _right(rows: Iterable[Row], cache: str, wanted: Callable[[Row], bool]) -> tuple[int, int]:
    chosen = [row for row in rows if row["cache"] == cache and wanted(row)]
    return sum(row["right"] for row in chosen), sum(row["n"] for row in chosen)
