"""turbovec and rabitqlib under test, where they are installed."""

from __future__ import annotations

import numpy as np

from ..errors import Unavailable
from .base import require

__all__ = ["RabitqlibIndex", "TurbovecIndex"]


class TurbovecIndex:
    """turbovec's index: inner product of unit vectors, 2 to 4 bits."""

    threads_can_change = False  # rayon reads RAYON_NUM_THREADS once

    def __init__(self, d: int, bits: float, metric: str) -> None:
        turbovec = require("turbovec", "turbovec")
        if metric == "l2":
            raise Unavailable("inner product only")
        if d % 8:
            raise Unavailable(f"d must be a multiple of 8, got {d}")
        self.index = turbovec.TurboQuantIndex(d, int(bits))
        self._one_row = 0

    def train(self, x: np.ndarray) -> None:
        """Nothing to learn."""

    def add(self, x: np.ndarray) -> None:
        """Append vectors and warm the caches, as its own documentation advises."""
        if not self._one_row:
            self.index.add(x[:1])
            self._one_row = len(self.index.to_bytes())
            x = x[1:]
        if len(x):
            self.index.add(x)
        self.index.prepare()

    def search(self, q: np.ndarray, k: int) -> np.ndarray:
        """Ids [nq, k]."""
        return self.index.search(q, k)[1]

    def set_threads(self, n: int) -> None:
        """The process has its thread count from its start."""

    def bytes_per_vector(self, n: int) -> float:
        """Growth of its serialised form per vector."""
        return (len(self.index.to_bytes()) - self._one_row) / max(1, n - 1)


class RabitqlibIndex:
    """rabitqlib's IVF with one cluster, which is a flat index centred on the mean."""

    threads_can_change = True

    def __init__(self, d: int, bits: float, metric: str) -> None:
        self.rabitqlib = require("rabitqlib", "rabitqlib")
        self.d, self.bits, self.threads = d, int(bits), 1
        self.metric = "l2" if metric == "l2" else "ip"
        self.index = None

    def train(self, x: np.ndarray) -> None:
        """The mean is taken while building."""

    def add(self, x: np.ndarray) -> None:
        """Build the index; it is built once."""
        try:
            self.index = self.rabitqlib.IvfIndex(self.d, len(x), 1, self.bits, self.metric)
            cluster = np.zeros(len(x), dtype=np.uint32)
            self.index.build(x, x.mean(axis=0, keepdims=True), cluster, num_threads=self.threads)
        except (RuntimeError, ValueError) as error:
            raise Unavailable(str(error).splitlines()[0]) from error

    def search(self, q: np.ndarray, k: int) -> np.ndarray:
        """Ids [nq, k]."""
        return self.index.search(q, k, 1, num_threads=self.threads)[0].astype(np.int64)  # type: ignore[union-attr]

    def set_threads(self, n: int) -> None:
        """Threads of building and searching."""
        self.threads = n

    def bytes_per_vector(self, n: int) -> float:  # noqa: ARG002
        """Code of the width padded to 64, two or four float32 factors, a 32-bit id."""
        padded = -(-self.d // 64) * 64
        return padded * self.bits / 8 + (16 if self.bits == 1 else 24)
