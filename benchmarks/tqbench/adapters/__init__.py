"""One interface over every index that is compared."""

from __future__ import annotations

from importlib import import_module

from ..methods import Case
from .base import Adapter

__all__ = ["Adapter", "create"]


def create(case: Case, d: int, metric: str) -> Adapter:
    """An empty index for a case.

    Raises
    ------
    Unavailable
        When the package is not installed, or the method cannot work at this `d`, width or metric.
    """
    module, name = case.method.adapter.split(":")
    return getattr(import_module(f"{__name__}.{module}"), name)(d, case.bits, metric, **case.method.options)
