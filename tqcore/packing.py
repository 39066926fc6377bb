"""Row-major codes and the blocked layout that the scan reads.

Blocks are uint32 [nb, words, 16] and hold the bytes of sixteen rows, zero padded to whole words, in the order in which
the active SIMD level reads them. Byte c of row i is byte ``4 * (i % 16) + c % 4`` of ``blocks[i // 16, c // 4]``, or
byte ``16 * (c % 4) + i % 16`` where ``_core.by_place()``. Of a "layered" code they hold the first `head_size` bytes of
a row, and an array of rows holds the others.
"""

from __future__ import annotations

import numpy as np

from tqcore import _core
from tqcore.config import BLOCK_ROWS

__all__ = ["blocks_for", "move_rows", "pack_rows", "put_rows", "unpack_rows"]


def blocks_for(n: int, code_size: int) -> tuple[int, int, int]:
    """Shape of the blocks that hold `n` rows of `code_size` bytes."""
    return -(-n // BLOCK_ROWS), -(-code_size // 4), BLOCK_ROWS


def pack_rows(
    blocks: np.ndarray,
    start: int,
    codes: np.ndarray,
    columns: np.ndarray | None = None,
    scalars: np.ndarray | None = None,
) -> None:
    """Write uint8 codes [m, code_size] into rows ``start`` to ``start + m - 1`` of `blocks`, in place.

    Scalars float32 [m, s] go into the same places of `columns`, float32 [s, capacity].
    """
    _core.pack_rows(blocks, start, np.ascontiguousarray(codes), columns, scalars)


def put_rows(blocks: np.ndarray, positions: np.ndarray, codes: np.ndarray) -> None:
    """Write uint8 codes [m, code_size] into rows `positions`, int64 [m], of `blocks`, in place."""
    _core.put_rows(blocks, positions, np.ascontiguousarray(codes))


def move_rows(blocks: np.ndarray, scalars: np.ndarray, rows: np.ndarray, to: np.ndarray) -> None:
    """Copy rows int64 [m] of `blocks`, and of `scalars` float32 [s, capacity], to rows `to`, none of them in `rows`."""
    _core.move_rows(blocks, scalars, rows, to)


def unpack_rows(blocks: np.ndarray, positions: np.ndarray | slice, code_size: int) -> np.ndarray:
    """Codes uint8 [m, code_size] of the rows at `positions`, an int64 array or a slice with a stop."""
    if isinstance(positions, slice):
        positions = np.arange(positions.start or 0, positions.stop, dtype=np.int64)
    return _core.unpack_rows(blocks, np.ascontiguousarray(positions, dtype=np.int64), code_size)
