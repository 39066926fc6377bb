"""Ids of an index by position: nothing is stored while id and position agree, 8 bytes a vector afterwards."""

from __future__ import annotations

import numpy as np

from tqcore import _core

from .storage import Changes, grown

__all__ = ["IdMap"]

_INT64_MAX = np.iinfo(np.int64).max


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
        self._positions: _core.Int64Map | None = None
        self.changes: Changes | None = None  # since the file was written, for an index that has one
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
            held += self._positions.nbytes
        return held

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the position of each of `ids` (int64 [m]), -1 where it is not present."""
        if self._ids is None:
            return np.where((ids >= 0) & (ids < self.n), ids, -1)
        return self._reverse(self._ids).find(self._ids[: self.n], ids)

    def present(self, ids: np.ndarray) -> np.ndarray:
        """Return the positions of those of `ids` (int64 [m]) that are present, increasing and none twice."""
        if self._ids is None:
            return np.unique(ids[(ids >= 0) & (ids < self.n)])
        return self._reverse(self._ids).present(self._ids[: self.n], ids)

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
        if ids is not None or self._ids is not None:
            positions = np.arange(start, stop, dtype=np.int64)
            ids = positions if ids is None else ids
            if self._ids is not None or not np.array_equal(ids, positions):
                self._owned(stop)[start:stop] = ids
                if self._positions is not None:
                    self._positions.set(ids, positions)
        self.n = stop
        if count:
            self.next_id = max(self.next_id, stop if ids is None else int(ids.max()) + 1)

    def remove(self, positions: np.ndarray, holes: np.ndarray, movers: np.ndarray) -> None:
        """Remove the ids at `positions` and move those at `movers` to `holes` (`storage.removal_moves`)."""
        left = self.n - len(positions)
        if self._ids is not None or len(holes):
            if self._ids is None:
                self._positions = _core.Int64Map()  # so far every id is its position
            ids = self._owned(self.n)
            if self._positions is None:
                ids[holes] = ids[movers]
            else:
                self._positions.remove(ids, positions, holes, movers)
            if len(ids) > 1024 and left < len(ids) // 2:
                self._ids = ids[: grown(0, left + left // 32 + 64)].copy()
        self.n = left
        if self.changes is not None:
            self.changes.removed(holes, left)

    def copy(self) -> IdMap:
        """Return an independent map."""
        return IdMap(self.n, None if self._ids is None else self._ids[: self.n].copy(), self.next_id)

    def _reverse(self, ids: np.ndarray) -> _core.Int64Map:
        if self._positions is None:
            self._positions = _core.Int64Map()
            moved = np.flatnonzero(ids[: self.n] != np.arange(self.n))
            self._positions.set(ids[moved], moved)
        return self._positions

    def _owned(self, needed: int) -> np.ndarray:
        """The stored ids, made or copied where they must be, with room for `needed`."""
        ids = np.arange(self.n, dtype=np.int64) if self._ids is None else self._ids
        if needed > len(ids) or not ids.flags.writeable:
            kept = ids[: self.n]
            ids = np.empty(grown(len(ids), needed), dtype=np.int64)
            ids[: self.n] = kept
        self._ids = ids
        return ids
