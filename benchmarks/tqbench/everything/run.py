"""Runs the steps of `tq bench all` one after the other, keeping each outcome as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from time import perf_counter
from typing import Any

from ..checks import Check, counts, skipped
from ..errors import BenchError
from ..kv.journal import Journal
from ..machine import source_commit
from ..records import new_record
from .context import Context
from .options import STEPS, AllOptions

__all__ = ["run_all"]

# step -> module and function, its group when it cannot run, whether it needs the model
_CHECKS: dict[str, tuple[str, str, bool]] = {
    "theory": ("theory:check_theory", "Theory", False),
    "model": ("model:check_model", "Model loading", True),
    "memory": ("memory:check_memory", "Memory of the KV cache", True),
    "needle": ("needle:check_needle", "Needle in a haystack", True),
    "longbench": ("longbench:check_longbench", "LongBench", True),
    "distortion": ("divergence:check_distortion", "Distortion of the cache", True),
    "throughput": ("throughput:check_throughput", "Throughput of decoding", True),
    "attention": ("attention:check_attention", "Attention kernel", False),
    "ann": ("ann:check_ann", "Index", False),
}
Say = Callable[[str], None]


def run_all(options: AllOptions, say: Say = lambda _: None) -> dict[str, Any]:
    """Run every step and return the record; what an interrupted run has finished is taken over.

    Parameters
    ----------
    options : AllOptions
        What to run.
    say : callable
        Called with a line when a step begins and when it ends.

    Returns
    -------
    dict
        `checks`, `counts`, `steps` (name, seconds, whether it was taken over) and `parts` (records by step).

    Raises
    ------
    BenchError
        When a model that was asked for by name is missing, or the folder cannot be written.
    """
    context = Context(options)
    absent = _absent(context)
    settings = options.settings() | {"commit": source_commit()}
    journal = Journal(options.out, f"all-{_file_name(options.model_id)}", settings, options.fresh)
    checks: list[Check] = []
    steps, parts = [], {}
    names = options.steps()
    for number, name in enumerate(names, 1):
        kept = journal.get(name)
        say(f"[{number}/{len(names)}] {name}: {STEPS[name]}")
        if kept is None:
            start = perf_counter()
            outcome, part, whole = _attempt(name, context, absent)
            result = {
                "checks": [c.as_row() for c in outcome],
                "part": part,
                "seconds": perf_counter() - start,
            }
            if whole:
                journal.put(name, result)
        else:
            result = kept
        made = [Check(**row) for row in result["checks"]]
        found = ", ".join(f"{n} {status}" for status, n in counts(made).items() if n)
        say(f"    {found} in {result['seconds']:.1f} s{' (kept from before)' if kept else ''}")
        checks += made
        steps.append({"name": name, "seconds": round(result["seconds"], 2), "kept": kept is not None})
        if result["part"] is not None:
            parts[name] = result["part"]
    return new_record(
        "all",
        dataset={"name": _file_name(options.model_id), "description": _description(context, absent)},
        settings=options.settings() | {"device_name": context.device_name},
        counts=counts(checks),
        checks=[check.as_row() for check in checks],
        steps=steps,
        parts=parts,
    )


def _absent(context: Context) -> str:
    """Why there is no model, or nothing; a model that the user named must be there."""
    if not any(_CHECKS[name][2] for name in context.options.steps()):
        return "no step needs it"
    try:
        _ = context.loaded
    except BenchError as error:
        if not context.is_probe:
            raise
        return str(error)
    return ""


def _attempt(name: str, context: Context, absent: str) -> tuple[list[Check], dict[str, Any] | None, bool]:
    """Checks and record of a step, and whether it came to its end."""
    where, group, needs_model = _CHECKS[name]
    if needs_model and absent:
        return [skipped(group, STEPS[name], absent)], None, False
    module, function = where.split(":")
    try:
        checks, part = getattr(import_module(f".{module}", __package__), function)(context)
    except ImportError as error:
        reason = f"{error.name} is not installed: pip install 'tqann[bench,kv]'"
        return [skipped(group, STEPS[name], reason)], None, False
    except (BenchError, RuntimeError, ValueError, OSError, MemoryError) as error:
        # one step that breaks is a failed check; the others still tell something
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return [Check(group, STEPS[name], None, "comes to its end", "FAIL", reason=reason)], None, False
    return checks, part, True


def _description(context: Context, absent: str) -> str:
    return f"{context.options.model_id}: {absent}" if absent else context.loaded.description


def _file_name(model_id: str) -> str:
    return model_id.rstrip("/").rsplit("/", 1)[-1]
