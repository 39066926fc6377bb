"""Tables of a code in bytes, as the attention kernel looks them up, and the values that these stand for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from tqcore.chain import chain_tables, nibble_tables
from tqcore.codebook import lloyd_max

__all__ = ["ByteTables", "byte_tables", "round_tables"]

_LARGEST = 127  # entries have seven bits, so that two of them add up in a byte
_STEPS = np.linspace(1.0, 1.1, 101)  # tried, over the smallest step that spans the values


@dataclass(frozen=True)
class ByteTables:
    """Tables whose entry n of dimension i and offset m stands for ``steps[i] * entries[i, m, n] + offsets[i, m]``.

    Attributes
    ----------
    entries : numpy.ndarray
        uint8 [Q, 2, 16], at most 127: what a nibble gives to the dimensions that it closes, then to those that the next
        one closes.
    steps : numpy.ndarray
        float32 [Q].
    offsets : numpy.ndarray
        float32 [Q, 2].
    """

    entries: np.ndarray
    steps: np.ndarray
    offsets: np.ndarray

    def values(self) -> np.ndarray:
        """What the entries stand for, float32 [Q, 2, 16]."""
        return np.ascontiguousarray(self.entries * self.steps[:, None, None] + self.offsets[:, :, None])

    @cached_property
    def packed(self) -> bytes:
        """Entries uint8 [Q, 2, 16], then float32 [Q, 2]: step and offset of every dimension; for reads of 16 bytes."""
        units = np.stack([self.steps, self.offsets.sum(axis=1)], axis=1).astype(np.float32)
        return self.entries.tobytes() + units.tobytes() + bytes(8)


def round_tables(tables: np.ndarray) -> ByteTables:
    """Byte tables nearest to tables float32 [Q, m, 16], m 1 or 2: of some steps, those of the least squared error."""
    padded = np.zeros((len(tables), 2, 16))
    padded[:, : tables.shape[1]] = tables
    least = padded.min(axis=2, keepdims=True)
    span = (padded - least).max(axis=(1, 2))
    best, steps = np.full(len(tables), np.inf), np.ones(len(tables))
    entries, offsets = np.zeros(padded.shape), np.zeros(padded.shape[:2])
    for factor in _STEPS:
        step = np.where(span > 0, span * factor / _LARGEST, 1.0)
        rounded = np.rint((padded - least) / step[:, None, None])
        rest = padded - rounded * step[:, None, None]
        error = rest.var(axis=2).sum(axis=1)
        better = error < best
        best[better], steps[better] = error[better], step[better]
        entries[better], offsets[better] = rounded[better], rest.mean(axis=2)[better]
    return ByteTables(entries.astype(np.uint8), steps.astype(np.float32), offsets.astype(np.float32))


@lru_cache(maxsize=64)
def byte_tables(code: str, head_dim: int, bits: float) -> ByteTables:
    """Byte tables of the chain code of memory 2, or of the code "mse" of 2 or 4 bits."""
    if code == "chain":
        return round_tables(chain_tables(bits, 2))
    return round_tables(nibble_tables(lloyd_max(head_dim, int(bits))))
