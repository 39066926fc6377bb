"""The checks of `tq bench paper`."""

from __future__ import annotations

from typing import Any

from ..checks import Check
from .context import Context

__all__ = ["check_theory"]


def check_theory(context: Context) -> tuple[list[Check], dict[str, Any]]:
    """Compression, rotation, distortion, bias and error of inner products."""
    from ..check_report import read_checks
    from ..paper.measure import PaperSettings
    from ..paper.suite import QUICK, run_paper

    record = run_paper(PaperSettings(seed=context.options.seed, **(QUICK if context.options.quick else {})))
    return read_checks(record), record
