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
    "longbench": (
        "tqbench.kv.longbench.suite",
        "LongBench and LongBench-E with their own prompts and metrics",
    ),
    "distortion": (
        "tqbench.kv.distortion_suite",
        "errors of a model's own keys, values and attention, and divergence of its predictions",
    ),
    "throughput": (
        "tqbench.kv.throughput",
        "time to the first token and tokens a second, beside other caches",
    ),
    "attention": ("tqbench.kv.attention", "one step's attention alone, beside torch's"),
}


def load_suite(name: str) -> Any:
    """The module of a suite; BenchError for a name that is not in `SUITES`."""
    if name not in SUITES:
        raise BenchError(f"suite must be one of {', '.join(SUITES)}, got {name!r}")
    return import_module(SUITES[name][0])
