"""Candidates from products of 8-bit integers: codes are decoded in registers, and thresholds rise on the way."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import torch

from tqcore.gpu.layout import LANES, UNIT, ByteTables, CodeLayout, DeviceRows
from tqcore.gpu.rtc import Kernel, compile_module

__all__ = ["Found", "batch", "fetch", "finish", "search_bytes", "sources", "takes"]

_MOST_RESULTS = 128  # above that, bounds of 8 bits leave too many candidates
_MOST_KEPT = 1 << 28  # bounds, of queries times rows or groups of rows
_PROCESSORS = 132
_ROOM = 4096  # candidates a query that one block sorts
_SHARED = 220 << 10
_WARPS = 8
_MOST_WARPS = 32  # where there are few blocks
_SLAB = 256  # blocks of rows that stay in the second-level cache while all queries pass
_PERIODS = (16, 4, 1)  # of the blocks that the first threshold comes from
_RAISED = 4  # period of the blocks searched before the threshold is raised
_SAMPLED = 512  # rows a result that the first threshold comes from at least


@lru_cache(maxsize=8)
def sources(*names: str) -> str:
    """The text of source files of this package, joined."""
    return "\n".join(files("tqcore.gpu").joinpath(name).read_text() for name in names)


def _kernel(name: str, tables: ByteTables, tiles: int) -> Kernel:
    options = (
        f"-DPERIOD={tables.period}",
        f"-DPHASES={tables.phases}",
        f"-DMEMORY={tables.memory}",
        f"-DTILES={tiles}",
        f"-DBLOCKS={_blocks(tables.phases, tiles)}",
    )
    return compile_module(sources("rows.cuh", "product.cu"), options).kernel(name)


def _select(name: str) -> Kernel:
    return compile_module(sources("rows.cuh", "select.cu")).kernel(name)


def _blocks(phases: int, tiles: int) -> int:
    """Thread blocks of a multiprocessor, as registers allow."""
    return 2 if tiles == 1 or tiles * phases <= 8 else 1


def _piece_bytes(layout: CodeLayout, tables: ByteTables, tiles: int) -> int:
    """Bytes of the operands of 8 queries: one for each word, phase and, in a single tile, age."""
    return 4 * _steps(layout) * tables.phases * (tables.memory if tiles == 1 else 1) * 256


class _Part(ctypes.Structure):
    _fields_ = (("period", ctypes.c_int32), ("ratio", ctypes.c_int32), ("count", ctypes.c_int32))

    @classmethod
    def of(cls, blocks: int, period: int, ratio: int = 0) -> _Part:
        """Blocks at multiples of `period`, without those at multiples of ``period * ratio`` if there is a ratio."""
        multiples = -(-blocks // period)
        return cls(period, ratio, multiples - -(-multiples // ratio) if ratio else multiples)


@dataclass
class Found:
    """Candidates of queries: rows int32 [nq, room], as many as `counts`, int32 [nq], says, with scores if known.

    `overflow` is uint8 [nq], 1 where there were more than room; `status`, int32 [2] in pinned memory, holds the
    first query that is not finite and whether a query had too many candidates.
    """

    counts: torch.Tensor
    rows: torch.Tensor
    overflow: torch.Tensor
    status: torch.Tensor | None = None
    scores: torch.Tensor | None = None

    @classmethod
    def empty(cls, nq: int, room: int, device: torch.device) -> Found:
        """Nothing found yet."""
        found = cls.uninitialized(nq, room, device)
        found.counts.zero_()
        found.overflow.zero_()
        return found

    @classmethod
    def uninitialized(
        cls, nq: int, room: int, device: torch.device, status: torch.Tensor | None = None
    ) -> Found:
        """Room whose counts a kernel sets to zero."""
        counts = torch.empty(5 * nq, dtype=torch.uint8, device=device)
        rows = torch.empty(nq, room, dtype=torch.int32, device=device)
        return cls(counts[: 4 * nq].view(torch.int32), rows, counts[4 * nq :], status)


def _steps(layout: CodeLayout) -> int:
    """Units of a row that each of four lanes takes."""
    return -(-layout.words // (4 * UNIT))


def _tiles(layout: CodeLayout, tables: ByteTables, n: int, nq: int) -> int:
    """Groups of 8 queries of a block, 1 if bounds of all rows are kept; 0 where they fit no shared memory."""
    if nq <= 8 and nq * n <= _MOST_KEPT:
        wanted = 1
    else:
        wanted = next((t for t in (4, 8, 14, 16) if nq <= 8 * t), 16)
    return next(
        (
            t
            for t in (16, 14, 8, 4, 1)
            if t <= wanted and t * (_piece_bytes(layout, tables, t) + 128) <= _SHARED
        ),
        0,
    )


def takes(layout: CodeLayout, rows: DeviceRows, nq: int, k: int) -> bool:
    """Whether `search_bytes` is made for such a search."""
    if layout.bytes is None or k > _MOST_RESULTS or rows.n >= 1 << 31:
        return False
    tiles = _tiles(layout, layout.bytes, rows.n, nq)
    if layout.bytes.period > 1 and nq > 8 * tiles:
        return False  # decoding once for all queries is faster then
    return tiles > 1 or (tiles == 1 and nq <= 8 and nq * rows.n <= _MOST_KEPT)


def batch(n: int) -> int:
    """Queries that `search_bytes` takes at a time, for its scratch memory."""
    return max(128, min(16384, (_MOST_KEPT // -(-n // (LANES * _PERIODS[0]))) // 128 * 128))


def _first_threshold(
    layout: CodeLayout,
    rows: DeviceRows,
    q: torch.Tensor,
    best: torch.Tensor,
    places: torch.Tensor | None,
    period: int,
    k: int,
    threshold: torch.Tensor,
) -> None:
    """Set thresholds to the least exact score of the k rows that the largest of `best`, float32 [nq, count], name."""
    warps = _MOST_WARPS if len(q) <= 2 * _PROCESSORS and layout.words <= 256 else _WARPS
    _select("first_threshold")(
        (len(q),),
        (32 * warps,),
        (layout.argument(), rows.argument(), q, best, places, period, best.shape[1], k, threshold),
        shared=layout.exact_bytes() + 4 * warps * layout.words,
    )


def fetch(addresses: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """Copy queries to float32 `to`, contiguous, from an address that is read when the kernel runs.

    `addresses` is int64 [3] in pinned memory: of queries, and of distances and labels. The last two are returned as
    int64 [2] on the device, for `finish`.
    """
    others = torch.empty(2, dtype=torch.int64, device=to.device)
    grid = min(8, -(-to.numel() // 1024))
    _select("fetch")((grid,), (1024,), (addresses, to.numel(), to, others))
    return others


def finish(
    layout: CodeLayout,
    rows: DeviceRows,
    q: torch.Tensor,
    constants: torch.Tensor | None,
    found: Found,
    k: int,
    results: tuple[torch.Tensor, torch.Tensor] | torch.Tensor | None,
    threshold: torch.Tensor | None = None,
) -> None:
    """Exact scores of the candidates: the k best of them in order, or thresholds raised to the k-th.

    `results` as one tensor are the addresses that `fetch` returns.
    """
    room = found.rows.shape[1]
    warps = 8 if layout.words <= 512 else 2
    addresses = results if isinstance(results, torch.Tensor) else None
    distances, labels = (None, None) if results is None or addresses is not None else results
    scores = found.scores
    if scores is None and len(q) <= 2 * _PROCESSORS and layout.words <= 256:
        scores = _scored(layout, rows, q, found)
    _select("finish")(
        (len(q),),
        (32 * warps,),
        (
            layout.argument(),
            rows.argument(),
            q,
            constants,
            rows.ids,
            found.counts,
            found.rows,
            scores,
            room,
            k,
            distances,
            labels,
            threshold,
            found.overflow,
            found.status,
            addresses,
        ),
        shared=16 * room + layout.exact_bytes() + 4 * warps * layout.words,
    )


def _scored(layout: CodeLayout, rows: DeviceRows, q: torch.Tensor, found: Found) -> torch.Tensor:
    """Exact scores float64 [nq, room] of the candidates, by all of the device rather than a block a query."""
    room = found.rows.shape[1]
    scores = torch.empty(len(q), room, dtype=torch.float64, device=q.device)
    _select("score_found")(
        (max(1, 4 * _PROCESSORS // len(q)), len(q)),
        (32 * _WARPS,),
        (layout.argument(), rows.argument(), q, found.counts, found.rows, room, scores),
        shared=layout.exact_bytes() + 4 * _WARPS * layout.words,
    )
    return scores


class _Product:
    """Queries prepared for products with the rows of one code."""

    def __init__(
        self,
        layout: CodeLayout,
        tables: ByteTables,
        rows: DeviceRows,
        q: torch.Tensor,
        lengths: tuple[float, float],
        status: torch.Tensor,
    ) -> None:
        self._layout, self._rows, self.nq = layout, rows, len(q)
        self._steps, self._tables = _steps(layout), tables
        self.tiles = _tiles(layout, tables, rows.n, len(q))
        self.found = Found.uninitialized(len(q), _ROOM if len(q) <= 1024 else _ROOM // 2, q.device, status)
        padded = -(-len(q) // (8 * self.tiles)) * 8 * self.tiles
        size = _piece_bytes(layout, tables, self.tiles)
        self._shared = self.tiles * (size + 128)
        self._pieces = torch.empty(padded // 8 * size, dtype=torch.uint8, device=q.device)
        columns = torch.empty(5 * padded, device=q.device)
        self._columns, self.threshold = columns[: 4 * padded], columns[4 * padded :]
        self._claimed = torch.empty(1, dtype=torch.int32, device=q.device)
        self._batches = padded // (8 * self.tiles)
        self._kernel("prepare")(
            (padded,),
            (256,),
            (
                tables.argument(),
                q,
                self.nq,
                layout.d,
                layout.nibbles,
                self._steps,
                *lengths,
                self._pieces,
                self._columns,
                self.threshold,
                self.found.counts,
                self.found.overflow,
                self._claimed,
                status,
            ),
            shared=4 * layout.d,
        )

    def _kernel(self, name: str) -> Kernel:
        return _kernel(name, self._tables, self.tiles)

    def blocks(self) -> int:
        """Thread blocks that fill the device."""
        held = _blocks(self._tables.phases, self.tiles)
        return _PROCESSORS * max(1, min(held, _SHARED // self._shared))

    def _slabs(self, count: int, grid: int) -> int:
        """Pieces that a part is cut into: a whole number of rounds over the device."""
        work = count * self._batches
        rounds = max(1, round(work / (grid * _SLAB)), -(-self._batches // grid))
        return max(1, min(grid * rounds // self._batches, -(-count // _WARPS)))

    def run(
        self,
        name: str,
        part: _Part,
        upper: torch.Tensor | None = None,
        best: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
    ) -> None:
        """Launch one of the kernels of product.cu."""
        grid = self.blocks()
        slabs = grid
        if name != "store":
            slabs = self._slabs(part.count, grid)
            grid = min(grid, slabs * self._batches)
        self._kernel(name)(
            (grid,),
            (32 * _WARPS,),
            (
                self._tables.argument(),
                self._rows.argument(),
                part,
                self._layout.words // UNIT,
                self._layout.nibbles,
                self._steps,
                self._batches,
                slabs,
                self._pieces,
                self._columns,
                self.threshold,
                self.nq,
                self.found.rows.shape[1],
                self.found.counts,
                self.found.rows,
                upper,
                best,
                places,
                self._claimed,
            ),
            shared=self._shared,
        )


def search_bytes(
    layout: CodeLayout,
    tables: ByteTables,
    rows: DeviceRows,
    q: torch.Tensor,
    constants: torch.Tensor | None,
    k: int,
    lengths: tuple[float, float],
    results: tuple[torch.Tensor, torch.Tensor] | torch.Tensor,
    status: torch.Tensor,
) -> Found:
    """Put the k best rows of queries into `results`; queries marked in what is returned need another way.

    Parameters are those of `tqcore.gpu.search.search`, but `results` may be the addresses that `fetch` returns.
    Nothing is waited for.
    """
    nq, device = len(q), q.device
    product = _Product(layout, tables, rows, q, lengths, status)
    blocks = -(-rows.n // LANES)
    if product.tiles == 1:
        _search_all(layout, tables, rows, q, product, k)
    else:
        period = next(p for p in _PERIODS if p == 1 or blocks * LANES // p >= _SAMPLED * k)
        sample = _Part.of(blocks, period)
        best = torch.empty(nq, sample.count, device=device)
        product.run("best_of", sample, best=best)
        _first_threshold(layout, rows, q, best, None, period, k, product.threshold)
        if period > _RAISED:
            product.run("hits_of", _Part.of(blocks, _RAISED))
            finish(layout, rows, q, None, product.found, k, None, product.threshold)
            product.run("hits_of", _Part.of(blocks, 1, _RAISED))
        else:
            product.run("hits_of", _Part.of(blocks, 1))
    finish(layout, rows, q, constants, product.found, k, results)
    return product.found


def _search_all(
    layout: CodeLayout, tables: ByteTables, rows: DeviceRows, q: torch.Tensor, product: _Product, k: int
) -> None:
    """Candidates of a few queries with their scores: upper bounds of all rows are kept until the threshold is known."""
    nq, blocks = len(q), -(-rows.n // LANES)
    upper = torch.empty(nq, blocks * LANES, device=q.device)
    warps = product.blocks() * _WARPS
    best = torch.empty(nq, warps, device=q.device)
    places = torch.empty(nq, warps, dtype=torch.int32, device=q.device)
    product.run("store", _Part.of(blocks, 1), upper, best, places)
    _first_threshold(layout, rows, q, best, places, 1, k, product.threshold)
    found = product.found
    found.scores = torch.empty(found.rows.shape, dtype=torch.float64, device=q.device)
    _kernel("collect_scores", tables, 1)(
        (min(-(-4 * _PROCESSORS // nq), -(-blocks // (4 * _WARPS))), nq),
        (32 * _WARPS,),
        (
            layout.argument(),
            rows.argument(),
            q,
            upper,
            product.threshold,
            found.rows.shape[1],
            found.counts,
            found.rows,
            found.scores,
        ),
        shared=layout.exact_bytes() + 4 * _WARPS * layout.words,
    )
