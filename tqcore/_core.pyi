"""Compiled core of tqcore: rotation, codes, packed layout and search."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class Code:
    """A compiled code: what packed rows mean."""

    @property
    def d(self) -> int: ...
    @property
    def code_size(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def query_size(self) -> int: ...
    @property
    def scannable(self) -> bool: ...

class Stored:
    """Rows to search: either `blocks` or `rows`, one array per scalar, optional ids and mask.

    Blocks hold the first `head_size` bytes of a code's rows, and `tails` the others.

    Queries without constants are vectors: divided by their norms with `unit`, then rotated by `signs`.
    With `positions`, `search` returns row numbers, and ids only order equal scores. With `head_share`, it scores
    rows by those first bytes, which hold that share of a vector's energy, and drops those that `deviations` of
    such a score's error would not bring among the best.
    """

    blocks: NDArray[np.uint32] | None
    rows: NDArray[np.uint8] | None
    tails: NDArray[np.uint8] | None
    scale: NDArray[np.float32] | None
    same_scale: float
    sign_scale: NDArray[np.float32] | None
    squared_norm: NDArray[np.float32] | None
    ids: NDArray[np.int64] | None
    mask: NDArray[np.uint8] | None
    signs: NDArray[np.float32] | None
    unit: bool
    n: int
    positions: bool
    head_share: float
    deviations: float

class Int64Map:
    """Positions of ids [n] that are not their own positions; `find` gives -1 for an id that is not there."""

    @property
    def nbytes(self) -> int: ...
    def find(self, ids: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def present(self, ids: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def set(self, keys: NDArray[np.int64], values: NDArray[np.int64]) -> None: ...
    def remove(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        holes: NDArray[np.int64],
        movers: NDArray[np.int64],
    ) -> None: ...
    def __len__(self) -> int: ...

def chain_code(d: int, p: int, q: int, tables: NDArray[np.float32]) -> Code: ...
def join_codes(codes: Sequence[Code], head_words: int = 0) -> Code: ...
def scalar_code(d: int, bits: int, centroids: NDArray[np.float32]) -> Code: ...
def sign_code(d: int) -> Code: ...
def with_signs(code: Code) -> Code: ...
def normalize(
    x: NDArray[np.float32], threads: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float64]]: ...
def row_dots(x: NDArray[np.float32], y: NDArray[np.float32], threads: int = 0) -> NDArray[np.float64]: ...
def first_unfit(x: NDArray[np.float32], threads: int = 0) -> int: ...
def hadamard_rotate(
    y: NDArray[np.float32], signs: NDArray[np.float32], inverse: bool = False, threads: int = 0
) -> NDArray[np.float32]: ...
def project(x: NDArray[np.float32], matrix: NDArray[np.float32], threads: int = 0) -> NDArray[np.float32]: ...
def encode(
    code: Code, x: NDArray[np.float32], signs: NDArray[np.float32] | None, threads: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]: ...
def encode_scaled(
    code: Code,
    x: NDArray[np.float32],
    signs: NDArray[np.float32],
    unit: bool,
    unbiased: bool,
    store_norm: bool,
    threads: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], bool]: ...
def decode(code: Code, codes: NDArray[np.uint8], threads: int = 0) -> NDArray[np.float32]: ...
def lut(code: Code, q: NDArray[np.float32]) -> NDArray[np.float32]: ...
def by_place() -> bool: ...
def put_rows(blocks: NDArray[np.uint32], positions: NDArray[np.int64], codes: NDArray[np.uint8]) -> None: ...
def pack_rows(
    blocks: NDArray[np.uint32],
    start: int,
    codes: NDArray[np.uint8],
    columns: NDArray[np.float32] | None = None,
    scalars: NDArray[np.float32] | None = None,
) -> None: ...
def bits_of(rows: NDArray[np.int64], n: int) -> NDArray[np.uint8]: ...
def removal_moves(n: int, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def move_rows(
    blocks: NDArray[np.uint32],
    scalars: NDArray[np.float32],
    rows: NDArray[np.int64],
    to: NDArray[np.int64],
) -> None: ...
def unpack_rows(
    blocks: NDArray[np.uint32], positions: NDArray[np.int64], code_size: int
) -> NDArray[np.uint8]: ...
def search(
    code: Code,
    stored: Stored,
    q: NDArray[np.float32],
    constants: NDArray[np.float64] | None,
    k: int,
    threads: int = 0,
    mask: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
def rescore(
    code: Code,
    stored: Stored,
    q: NDArray[np.float32],
    constants: NDArray[np.float64] | None,
    candidates: NDArray[np.int64],
    k: int,
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
def range_search(
    code: Code,
    stored: Stored,
    q: NDArray[np.float32],
    constants: NDArray[np.float64] | None,
    radius: float,
    threads: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]: ...
def simd_level() -> str: ...
def simd_reason() -> str: ...
def simd_levels() -> list[str]: ...
def set_simd(name: str) -> bool: ...
def default_threads() -> int: ...
