"""Where an index keeps its codes: growable blocks in memory, or the read-only rows of a mapped file."""

from __future__ import annotations

import math

import numpy as np

from tqcore import _core
from tqcore.packing import blocks_for, move_rows, pack_rows, put_rows, unpack_rows

__all__ = ["Changes", "CodeStorage", "grown", "removal_moves"]

_BLOCK = 16
_HUGE = 1 << 22  # bytes of an array


def grown(capacity: int, needed: int) -> int:
    """Return the capacity (a multiple of 16) that replaces `capacity` when `needed` rows must fit.

    Growth by 1/32 keeps the slack within 5% and still copies each row a bounded number of times.
    """
    if needed <= capacity:
        return capacity
    target = max(needed, capacity + max(capacity // 32, 64))
    # A large add ends on its own size: slack belongs to the many small ones.
    if needed - capacity >= 64 and needed >= capacity + capacity // 32:
        target = needed
    return -(-target // _BLOCK) * _BLOCK


def removal_moves(n: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (holes, movers): the gaps that sorted unique `positions` leave, and the rows to fill them."""
    return _core.removal_moves(n, positions)


class Changes:
    """Which rows of an index are not those of its file: the ones from `low` on, and some below.

    Parameters
    ----------
    n : int
        Rows of the file.
    """

    def __init__(self, n: int) -> None:
        self.low = n
        self._moved = np.zeros(0, dtype=np.int64)
        self._recent: list[np.ndarray] = []
        self._count = 0

    def removed(self, holes: np.ndarray, left: int) -> None:
        """Take note of a removal after which `left` rows are there, those in `holes` new ones."""
        self.low = min(self.low, left)
        holes = holes[holes < self.low]
        if not len(holes):
            return
        self._recent.append(holes)
        self._count += len(holes)
        # An index that is never written must not remember more than its rows.
        if self._count > 1024 + len(self._moved):
            self.moved()

    def moved(self) -> np.ndarray:
        """Return the rows below `low` that changed, sorted int64 [m]."""
        if self._recent:
            self._moved = np.unique(np.concatenate([self._moved, *self._recent]))
            self._recent, self._count = [], 0
        self._moved = self._moved[: int(np.searchsorted(self._moved, self.low))]
        return self._moved


class CodeStorage:
    """Codes and scalars of n vectors, by position.

    Parameters
    ----------
    code_size : int
        Bytes of one code, without scalars.
    n_scalars : int
        float32 values beside each code.
    head_size : int, optional
        Bytes of a code that lie in blocks; the others lie row by row. By default all.
    rows, scalars : ndarray, optional
        Read-only uint8 [n, code_size] and float32 [n_scalars, n] of a mapped file. They are searched where
        they are, and copied into memory by the first change, which never reaches the file.
    """

    def __init__(
        self,
        code_size: int,
        n_scalars: int,
        head_size: int | None = None,
        rows: np.ndarray | None = None,
        scalars: np.ndarray | None = None,
    ) -> None:
        self.code_size = code_size
        self.n = 0 if rows is None else len(rows)
        self._head_size = code_size if head_size is None else head_size
        self._rows = rows
        self._blocks = np.zeros(blocks_for(0, self._head_size), dtype=np.uint32)
        self._tails = np.zeros((0, code_size - self._head_size), dtype=np.uint8)
        self._scalars = np.zeros((n_scalars, 0), dtype=np.float32) if scalars is None else scalars

    @property
    def mapped(self) -> bool:
        """Whether the codes are still those of a file."""
        return self._rows is not None

    @property
    def codes(self) -> np.ndarray:
        """The uint32 blocks [nb, words, 16], room for n rows or more, or the mapped uint8 [n, code_size]."""
        return self._blocks if self._rows is None else self._rows

    @property
    def tails(self) -> np.ndarray | None:
        """What the blocks do not hold of each row, uint8 [>= n, code_size - head_size]; None where they hold all."""
        return self._tails if self._rows is None and self._head_size < self.code_size else None

    @property
    def scalars(self) -> np.ndarray:
        """float32 [n_scalars, capacity], of which the first n columns are in use."""
        return self._scalars

    def nbytes(self) -> int:
        """Bytes of memory held, spare capacity included; pages of a mapped file are not counted."""
        return 0 if self.mapped else self._blocks.nbytes + self._tails.nbytes + self._scalars.nbytes

    def rows(self, positions: np.ndarray | slice) -> np.ndarray:
        """Return the codes at `positions` (int64 [m], or slice(start, stop)) as uint8 [m, code_size]."""
        if self._rows is not None:
            return np.ascontiguousarray(self._rows[positions])
        heads = unpack_rows(self._blocks, positions, self._head_size)
        return heads if self.tails is None else np.concatenate([heads, self._tails[positions]], axis=1)

    def scalars_at(self, positions: np.ndarray | slice) -> np.ndarray:
        """Return the scalars at `positions` as float32 [m, n_scalars]."""
        return np.ascontiguousarray(self._scalars[:, positions].T)

    def reserve(self, needed: int) -> None:
        """Make room for `needed` rows in memory; the vectors held do not change."""
        if self._rows is not None:
            self._own(needed)
        capacity = self._scalars.shape[1]
        if needed > capacity:
            self._resize(grown(capacity, needed))

    def write(self, start: int, codes: np.ndarray, scalars: np.ndarray | None = None) -> None:
        """Put codes uint8 [m, code_size] and scalars float32 [m, n_scalars] at reserved rows from `start` on.

        Rows past n become part of the storage when `n` is set to include them.
        """
        heads = codes
        if self._head_size < self.code_size:
            heads = codes[:, : self._head_size]
            self._tails[start : start + len(codes)] = codes[:, self._head_size :]
        if scalars is None:
            pack_rows(self._blocks, start, heads)
        else:
            pack_rows(self._blocks, start, heads, self._scalars, np.ascontiguousarray(scalars))

    def put(self, positions: np.ndarray, codes: np.ndarray, scalars: np.ndarray) -> None:
        """Put codes uint8 [m, code_size] and scalars float32 [m, n_scalars] at `positions`, int64 [m] below n."""
        if self._rows is not None:
            self._own(self.n)
        positions = np.ascontiguousarray(positions, dtype=np.int64)
        put_rows(self._blocks, positions, codes[:, : self._head_size])
        if self.tails is not None:
            self._tails[positions] = codes[:, self._head_size :]
        self._scalars[:, positions] = scalars.T

    def remove(self, holes: np.ndarray, movers: np.ndarray, n: int) -> None:
        """Move the rows `movers` into `holes` and keep the first `n`; see `removal_moves`."""
        if self._rows is not None:
            self._own(self.n)
        if len(holes):
            move_rows(self._blocks, self._scalars, movers, holes)
            if self.tails is not None:
                self._tails[holes] = self._tails[movers]
        self.n = n
        capacity = self._scalars.shape[1]
        if capacity > 1024 and n < capacity // 2:
            self._resize(grown(0, n + n // 32 + 64))

    def copy(self) -> CodeStorage:
        """Return an independent storage; a mapped one shares the read-only map."""
        if self._rows is not None:
            return CodeStorage(self.code_size, len(self._scalars), self._head_size, self._rows, self._scalars)
        other = CodeStorage(self.code_size, len(self._scalars), self._head_size)
        blocks = blocks_for(self.n, self._head_size)[0]
        other._blocks = self._blocks[:blocks].copy()
        other._tails = self._tails[: blocks * _BLOCK].copy()
        other._scalars = self._scalars[:, : blocks * _BLOCK].copy()
        other.n = self.n
        return other

    def _own(self, needed: int) -> None:
        rows, scalars, n = self._rows, self._scalars, self.n
        owned = CodeStorage(self.code_size, len(scalars), self._head_size)
        owned._resize(grown(0, max(needed, n)))
        for start in range(0, n, 65536):
            stop = min(start + 65536, n)
            owned.write(start, np.ascontiguousarray(rows[start:stop]), scalars[:, start:stop].T)
        self._rows, self._blocks, self._tails, self._scalars = (
            None,
            owned._blocks,
            owned._tails,
            owned._scalars,
        )

    def _resize(self, capacity: int) -> None:
        kept = min(capacity, self._scalars.shape[1])
        scalars = np.zeros((len(self._scalars), capacity), dtype=np.float32)
        scalars[:, :kept] = self._scalars[:, :kept]
        shapes = {
            "_blocks": blocks_for(capacity, self._head_size),
            "_tails": (capacity, self._tails.shape[1]),
        }
        for name, shape in shapes.items():
            if self._extended(name, shape):
                continue
            held, moved = getattr(self, name), np.zeros(shape, dtype=getattr(self, name).dtype)
            shared = min(shape[0], len(held))
            moved[:shared] = held[:shared]
            setattr(self, name, moved)
        self._scalars = scalars

    def _extended(self, name: str, shape: tuple[int, ...]) -> bool:
        # NumPy asks for huge pages for what it allocates from that size on, and they stay as the allocator extends it.
        if getattr(self, name).nbytes < _HUGE <= math.prod(shape) * getattr(self, name).itemsize:
            return False
        try:
            # Often in place; it refuses while a search still reads the array.
            getattr(self, name).resize(shape)
        except ValueError:
            return False
        return True
