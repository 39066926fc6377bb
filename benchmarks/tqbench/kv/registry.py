"""The suites of `tq bench kv` by name, without importing them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import BenchError

__all__ = ["SUITES", "load_suite"]

# name -> module with run(options), write_page(record, folder, name) and show(record, console); one line of help
SUITES: dict[str, tuple[str, str]] = {
    "memory": (
        "tqbench.kv.memory",
        "bytes of a cache for any configuration, and of a real cache beside them",
    ),
    "needle": ("tqbench.kv.needle", "values hidden in a long text, asked for from the packed cache"),
}


def load_suite(name: str) -> Any:
    """The module of a suite; BenchError for a name that is not in `SUITES`."""
    if name not in SUITES:
        raise BenchError(f"suite must be one of {', '.join(SUITES)}, got {name!r}")
    return import_module(SUITES[name][0])
