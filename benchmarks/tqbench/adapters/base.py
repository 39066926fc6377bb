"""The interface of an adapter, and how its packages are found."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Protocol

import numpy as np

from ..errors import Unavailable

__all__ = ["Adapter", "require"]


class Adapter(Protocol):
    """An index under test. Vectors are float32 [n, d], C-contiguous."""

    # False where the thread count is fixed when the process starts; such an index gets its own processes.
    threads_can_change: bool

    def train(self, x: np.ndarray) -> None:
        """Learn from `x`, where the method learns."""

    def add(self, x: np.ndarray) -> None:
        """Append vectors; their ids are their positions."""

    def search(self, q: np.ndarray, k: int) -> np.ndarray:
        """Ids [nq, k], best first."""
        ...

    def set_threads(self, n: int) -> None:
        """Use `n` threads from here on."""

    def bytes_per_vector(self, n: int) -> float:
        """True bytes per vector at `n` vectors: code, scalars, stored ids; without tables of fixed size."""
        ...


def require(package: str, extra: str) -> ModuleType:
    """The module `package`, or Unavailable with what to install."""
    try:
        return import_module(package)
    except ImportError as error:
        raise Unavailable(f"not installed (pip install {extra})") from error
