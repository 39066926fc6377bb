"""Ids of an index by position: nothing is stored while id and position agree, 8 bytes a vector afterwards."""

from __future__ import annotations

import sys

import numpy as np

from .storage import grown

__all__ = ["IdMap"]

_INT64_MAX = np.iinfo(np.int64).max
_DICT_ENTRY_BYTES = 64  # two int objects beside the table that sys.getsizeof counts


class IdMap:
    """Unique int64 ids >= 0 of n vectors, by position.

    Parameters
    ----------
    n : int
        Number of vectors; without `ids`, vector i has the id i.
    ids : ndarray, optional
        int64 [n]; may be read-only, it is copied before the first change.
    next_id : int, optional
        The id that the next automatic assignment starts from; by default one above the largest.
    """

    def __init__(self, n: int = 0, ids: np.ndarray | None = None, next_id: int | None = None) -> None:
        self.n = n
        self._ids = ids
        self._positions: dict[int, int] | None = None
        if next_id is None:
            next_id = n if ids is None else int(ids.max(initial=-1)) + 1
        self.next_id = next_id

    @property
    def sequential(self) -> bool:
        """Whether every id is its position."""
        return self._ids is None

    @property
    def stored(self) -> np.ndarray | None:
        """int64 [n], or None while every id is its position."""
        return None if self._ids is None else self._ids[: self.n]

    def array(self) -> np.ndarray:
        """Return all ids by position, a new int64 [n]."""
        return np.arange(self.n, dtype=np.int64) if self._ids is None else self._ids[: self.n].copy()

    def nbytes(self) -> int:
        """Bytes of memory held; the reverse map, built by the first look-up of a stored id, is included."""
        held = 0 if self._ids is None or not self._ids.flags.writeable else self._ids.nbytes
        if self._positions is not None:
            held += sys.getsizeof(self._positions) + _DICT_ENTRY_BYTES * len(self._positions)
        return held

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the position of each of `ids` (int64 [m]), -1 where it is not present."""
        if self._ids is None:
            return np.where((ids >= 0) & (ids < self.n), ids, -1)
        if self._positions is None:
            self._positions = dict(zip(self._ids[: self.n].tolist(), range(self.n), strict=True))
        get = self._positions.get
        return np.fromiter((get(i, -1) for i in ids.tolist()), dtype=np.int64, count=len(ids))

    def fresh(self, count: int) -> np.ndarray | None:
        """Return the next `count` automatic ids, None where they are the next positions; assigns nothing."""
        if self.next_id > _INT64_MAX - count + 1:
            raise ValueError(
                f"ids must fit int64, but {count} more after {self.next_id - 1} do not; give ids yourself"
            )
        if self._ids is None and self.next_id == self.n:
            return None
        return np.arange(self.next_id, self.next_id + count, dtype=np.int64)

    def check_absent(self, ids: np.ndarray, name: str) -> None:
        """Raise ValueError if one of `ids` is already present."""
        if not len(ids) or ids.min() >= self.next_id:
            return
        found = self.find(ids) >= 0
        if found.any():
            raise ValueError(f"{name} must not be in the index yet, but {ids[int(np.argmax(found))]} is")

    def append(self, count: int, ids: np.ndarray | None) -> None:
        """Give the next `count` positions `ids` (checked int64 [count]), or, for None, their positions."""
        start, stop = self.n, self.n + count
        if ids is None and self._ids is not None:
            ids = np.arange(start, stop, dtype=np.int64)
        if ids is not None and self._ids is None and not np.array_equal(ids, np.arange(start, stop)):
            self._materialise()
        if self._ids is not None:
            self._reserve(stop)
            self._ids[start:stop] = ids
            if self._positions is not None:
                self._positions.update(zip(ids.tolist(), range(start, stop), strict=True))
        self.n = stop
        if count:
            self.next_id = max(self.next_id, stop if ids is None else int(ids.max()) + 1)

    def remove(self, positions: np.ndarray, holes: np.ndarray, movers: np.ndarray) -> None:
        """Remove the ids at `positions` and move those at `movers` to `holes` (`storage.removal_moves`)."""
        left = self.n - len(positions)
        if self._ids is None and len(holes):
            self._materialise()
        if self._ids is not None:
            self._reserve(self.n)
            moved = self._ids[movers]
            if self._positions is not None:
                for gone in self._ids[positions].tolist():
                    del self._positions[gone]
                self._positions.update(zip(moved.tolist(), holes.tolist(), strict=True))
            self._ids[holes] = moved
            if len(self._ids) > 1024 and left < len(self._ids) // 2:
                self._ids = self._ids[: grown(0, left + left // 32 + 64)].copy()
        self.n = left

    def copy(self) -> IdMap:
        """Return an independent map."""
        return IdMap(self.n, None if self._ids is None else self._ids[: self.n].copy(), self.next_id)

    def _materialise(self) -> None:
        self._ids = np.arange(self.n, dtype=np.int64)

    def _reserve(self, needed: int) -> None:
        if needed <= len(self._ids) and self._ids.flags.writeable:
            return
        ids = np.empty(grown(len(self._ids), needed), dtype=np.int64)
        ids[: self.n] = self._ids[: self.n]
        self._ids = ids
