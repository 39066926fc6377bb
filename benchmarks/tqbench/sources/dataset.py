"""One benchmark's vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import BenchError
from .options import SourceOptions

__all__ = ["Dataset", "split_rows"]


@dataclass(frozen=True)
class Dataset:
    """Vectors to index and to ask.

    Attributes
    ----------
    name, description : str
        Short name for file names and tables, and one line for people.
    base, queries : float32 [n, d], float32 [nq, d]
    held_out : float32 [m, d] or None
        Rows of the same origin that are neither base nor queries: training data for methods that train.
    metric : str
        "l2", "ip" or "cosine".
    """

    name: str
    description: str
    base: np.ndarray
    queries: np.ndarray
    metric: str
    held_out: np.ndarray | None = None

    @property
    def d(self) -> int:
        """Dimensions."""
        return self.base.shape[1]

    @property
    def squared_mean(self) -> float:
        """Squared length of the mean of the unit vectors: 0 for centred data, 1 for one direction."""
        total = np.zeros(self.d)
        for start in range(0, len(self.base), 65536):
            rows = self.base[start : start + 65536].astype(np.float64)
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            total += (rows / np.where(norms > 0, norms, 1)).sum(axis=0)
        mean = total / len(self.base)
        return float(mean @ mean)

    def limited(self, options: SourceOptions) -> Dataset:
        """The same data with the user's limits on rows and the user's metric.

        Raises
        ------
        BenchError
            When a limit is not positive, or dimensions or values do not fit.
        """
        for name, value in (("n", options.n), ("nq", options.nq)):
            if value is not None and value < 1:
                raise BenchError(f"{name} must be at least 1, got {value}")
        data = replace(
            self,
            base=self.base[: options.n],
            queries=self.queries[: options.nq],
            metric=options.metric or self.metric,
        )
        data.check()
        return data

    def prepared(self) -> Dataset:
        """Contiguous vectors; unit vectors for cosine, which FAISS's users make themselves."""
        held_out = None if self.held_out is None else self._ready(self.held_out)
        return replace(
            self, base=self._ready(self.base), queries=self._ready(self.queries), held_out=held_out
        )

    def _ready(self, x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, dtype=np.float32)
        if self.metric != "cosine":
            return x
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(norm > 0, norm, 1)

    def check(self) -> None:
        """Raise BenchError unless every part is a finite float32 matrix of the same width."""
        parts = {"base": self.base, "queries": self.queries}
        if self.held_out is not None:
            parts["held_out"] = self.held_out
        for name, x in parts.items():
            if x.ndim != 2 or x.shape[0] == 0:
                raise BenchError(f"{name} must be a matrix with at least one row, got shape {x.shape}")
            if x.shape[1] != self.d:
                raise BenchError(f"{name} must have {self.d} columns as base has, got {x.shape[1]}")
            if not all(np.isfinite(x[i : i + 65536]).all() for i in range(0, len(x), 65536)):
                raise BenchError(f"{name} must hold finite values, found NaN or infinity")
        if self.d < 8:
            raise BenchError(f"vectors must have at least 8 dimensions, got {self.d}")


def split_rows(
    rows: np.ndarray, nq: int | None, held_out: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Base, queries and held-out rows as a seeded split of `rows` [n, d].

    `nq` None takes a tenth of the rows, 1,000 at most.
    """
    if len(rows) < 3:
        raise BenchError(f"at least 3 vectors are needed to set queries apart, got {len(rows)}")
    nq = min(1000, max(1, len(rows) // 10)) if nq is None else min(nq, len(rows) // 2)
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out = min(held_out, (len(rows) - nq) // 2)
    queries, train, base = np.split(order, [nq, nq + held_out])
    return rows[np.sort(base)], rows[queries], rows[np.sort(train)] if held_out else None
