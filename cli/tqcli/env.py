"""`tq env`: what is active and why."""

from __future__ import annotations

import os
from typing import Any

import click

from .output import one_line_errors, print_json

__all__ = ["env"]

_OPTIONAL = {
    "faiss": "baselines of tq bench ann (bench)",
    "matplotlib": "reports (bench)",
    "h5py": "HDF5 files (bench)",
    "pyarrow": "parquet files (bench)",
    "sklearn": "source digits (bench)",
    "turbovec": "a rival, when installed",
    "rabitqlib": "a rival, when installed",
    "torch": "source qwen (kv)",
    "transformers": "source qwen (kv)",
    "datasets": "corpora of the hub for source qwen (kv)",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@one_line_errors
def env(as_json: bool) -> None:
    """Show the machine, the active kernels and why, and the optional packages found."""
    from tqbench.machine import describe_machine, source_commit

    machine = describe_machine()
    found = {
        "machine": machine,
        "tqann": {"version": _version("tqann"), "numpy": _version("numpy"), "commit": source_commit()},
        "kernels": _kernels(),
        "optional": {name: {"version": _module_version(name), "for": use} for name, use in _OPTIONAL.items()},
    }
    if as_json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("processor", f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['flags'])}")
    table.add_row("memory", f"{machine['memory_gib']} GiB")
    table.add_row("system", f"{machine['os']}, {machine['architecture']}, Python {machine['python']}")
    table.add_row("tqann", f"{found['tqann']['version']}, numpy {found['tqann']['numpy']}")
    kernels = found["kernels"]
    table.add_row("kernels", f"[bold]{kernels['level']}[/]: {kernels['why']}")
    table.add_row("threads", f"{kernels['threads']}: {kernels['threads_why']}")
    for name, entry in found["optional"].items():
        state = entry["version"] or "[dim]not installed[/]"
        table.add_row(name, f"{state}  [dim]{entry['for']}[/]")
    console.print(table)


def _kernels() -> dict[str, Any]:
    import tqcore
    from tqbench.machine import available_cores

    forced, threads = os.environ.get("TQ_SIMD"), os.environ.get("TQ_THREADS")
    return {
        "level": tqcore.simd_level(),
        "why": f"TQ_SIMD={forced}" if forced else "the best that this processor has",
        "threads": int(threads) if threads and threads.isdigit() else available_cores(),
        "threads_why": f"TQ_THREADS={threads}" if threads else "all cores that this process may use",
    }


def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _module_version(module: str) -> str | None:
    """Version of an importable module's distribution, without importing it."""
    from importlib.metadata import packages_distributions
    from importlib.util import find_spec

    if find_spec(module) is None:
        return None
    owners = packages_distributions().get(module, [])
    return (_version(owners[0]) if owners else None) or "unknown version"
