"""Candidates from products of 8-bit integers: codes are decoded in registers, and thresholds rise on the way."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import torch

from tqcore.gpu.layout import LANES, UNIT, ByteTables, CodeLayout, DeviceRows
from tqcore.gpu.rtc import Kernel, compile_module

__all__ = ["Found", "batch", "finish", "search_bytes", "sources", "takes"]

_MOST_RESULTS = 128  # above that, bounds of 8 bits leave too many candidates
_MOST_KEPT = 1 << 28  # bounds, of queries times rows or groups of rows
_PROCESSORS = 132
_ROOM = 4096  # candidates a query that one block sorts
_SHARED = 220 << 10
_WARPS = 8
_SLAB = 256  # blocks of rows that stay in the second-level cache while all queries pass
_PERIODS = (16, 4, 1)  # of the blocks seen before a threshold is raised
_SAMPLED = 512  # rows a result that the first threshold comes from at least


@lru_cache(maxsize=8)
def sources(*names: str) -> str:
    """The text of source files of this package, joined."""
    return "\n".join(files("tqcore.gpu").joinpath(name).read_text() for name in names)


def _kernel(name: str, phases: int, memory: int, tiles: int) -> Kernel:
    options = (
        f"-DPHASES={phases}",
        f"-DMEMORY={memory}",
        f"-DTILES={tiles}",
        f"-DBLOCKS={_blocks(phases, tiles)}",
    )
    return compile_module(sources("rows.cuh", "product.cu"), options).kernel(name)


def _select(name: str) -> Kernel:
    return compile_module(sources("rows.cuh", "select.cu")).kernel(name)


def _blocks(phases: int, tiles: int) -> int:
    """Thread blocks of a multiprocessor, as registers allow."""
    if tiles == 1 and phases == 1:
        return 3
    return 2 if tiles == 1 or tiles * phases <= 8 else 1


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
    def empty(cls, nq: int, room: int, device: torch.device, status: torch.Tensor | None = None) -> Found:
        """Nothing found yet."""
        counts = torch.zeros(5 * nq, dtype=torch.uint8, device=device)
        rows = torch.empty(nq, room, dtype=torch.int32, device=device)
        return cls(counts[: 4 * nq].view(torch.int32), rows, counts[4 * nq :], status)


def _steps(layout: CodeLayout) -> int:
    """Units of a row that each of four lanes takes."""
    return -(-layout.words // (4 * UNIT))


def _tiles(layout: CodeLayout, phases: int, n: int, nq: int) -> int:
    """Groups of 8 queries of a block, 1 if bounds of all rows are kept; 0 where they fit no shared memory."""
    if nq <= 8 and nq * n <= _MOST_KEPT:
        wanted = 1
    else:
        wanted = next((t for t in (4, 8, 14, 16) if nq <= 8 * t), 16)
    slots = 4 * _steps(layout) * phases
    return next((t for t in (16, 14, 8, 4, 1) if t <= wanted and t * (256 * slots + 128) <= _SHARED), 0)


def takes(layout: CodeLayout, rows: DeviceRows, nq: int, k: int) -> bool:
    """Whether `search_bytes` is made for such a search."""
    if layout.bytes is None or k > _MOST_RESULTS or rows.n >= 1 << 31:
        return False
    tiles = _tiles(layout, layout.bytes.phases, rows.n, nq)
    if layout.bytes.period > 1 and nq > 8 * tiles:
        return False  # decoding once for all queries is faster then
    return tiles > 1 or (tiles == 1 and nq <= 8 and nq * rows.n <= _MOST_KEPT)


def batch(n: int) -> int:
    """Queries that `search_bytes` takes at a time, for its scratch memory."""
    return max(128, min(16384, (_MOST_KEPT // -(-n // (LANES * _PERIODS[0]))) // 128 * 128))


def kth(values: torch.Tensor, k: int, out: torch.Tensor) -> None:
    """Put the k-th largest of each row of float32 [nq, count] into `out`, float32 [>= nq]; -inf for fewer."""
    threads = 1024 if len(values) <= 2 * _PROCESSORS else 256
    _select("kth")((len(values),), (threads,), (values, values.shape[1], k, out))


def finish(
    layout: CodeLayout,
    rows: DeviceRows,
    q: torch.Tensor,
    constants: torch.Tensor | None,
    found: Found,
    k: int,
    results: tuple[torch.Tensor, torch.Tensor] | None,
    threshold: torch.Tensor | None = None,
) -> None:
    """Exact scores of the candidates: the k best of them in order, or thresholds raised to the k-th."""
    room = found.rows.shape[1]
    warps = 8 if layout.words <= 512 else 2
    if len(q) <= 2 * _PROCESSORS and layout.words <= 256:
        warps = 32  # few blocks: more warps of each
    distances, labels = results or (None, None)
    scores = found.scores
    if scores is None and 1 < len(q) <= 2 * _PROCESSORS and layout.words <= 256:
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
        ),
        shared=16 * room + layout.exact_bytes() + 4 * warps * layout.words,
    )


def _scored(layout: CodeLayout, rows: DeviceRows, q: torch.Tensor, found: Found) -> torch.Tensor:
    """Exact scores float64 [nq, room] of the candidates, by all of the device rather than a block a query."""
    room = found.rows.shape[1]
    scores = torch.empty(len(q), room, dtype=torch.float64, device=q.device)
    _select("score_found")(
        (-(-8 * _PROCESSORS // len(q)), len(q)),
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
        self.tiles = _tiles(layout, tables.phases, rows.n, len(q))
        padded = -(-len(q) // (8 * self.tiles)) * 8 * self.tiles
        slots = 4 * self._steps * tables.phases
        self._shared = self.tiles * (slots * 256 + 128)
        self._pieces = torch.empty(padded * slots * 32, dtype=torch.uint8, device=q.device)
        columns = torch.empty(5 * padded, device=q.device)
        self._columns, self.threshold = columns[: 4 * padded], columns[4 * padded :]
        self._batches = padded // (8 * self.tiles)
        self._kernel("prepare")(
            (padded,),
            (256,),
            (
                tables.argument(),
                q,
                self.nq,
                layout.d,
                tables.period,
                self._steps,
                *lengths,
                self._pieces,
                self._columns,
                self.threshold,
                status,
            ),
            shared=4 * layout.d,
        )

    def _kernel(self, name: str) -> Kernel:
        return _kernel(name, self._tables.phases, self._tables.memory, self.tiles)

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
        found: Found | None,
        upper: torch.Tensor | None,
        best: torch.Tensor | None,
    ) -> None:
        """Launch one of the kernels of product.cu."""
        grid = self.blocks()
        slabs = self._slabs(part.count, grid)
        if name != "store":
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
                0 if found is None else found.rows.shape[1],
                None if found is None else found.counts,
                None if found is None else found.rows,
                upper,
                best,
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
    results: tuple[torch.Tensor, torch.Tensor],
    status: torch.Tensor,
) -> Found:
    """Put the k best rows of queries into `results`; queries marked in what is returned need another way.

    Parameters are those of `tqcore.gpu.search.search`; nothing is waited for.
    """
    nq, device = len(q), q.device
    product = _Product(layout, tables, rows, q, lengths, status)
    blocks = -(-rows.n // LANES)
    if product.tiles == 1:
        grid = product.blocks()
        upper = torch.empty(nq, blocks * LANES, device=device)
        best = torch.empty(nq, grid * _WARPS, device=device)
        product.run("store", _Part.of(blocks, 1), None, upper, best)
        found = Found.empty(nq, _ROOM, device, status)
        kth(best, k, product.threshold)
        found.scores = torch.empty(nq, _ROOM, dtype=torch.float64, device=device)
        _kernel("collect_scores", tables.phases, tables.memory, 1)(
            (min(-(-8 * _PROCESSORS // nq), -(-blocks // (4 * _WARPS))), nq),
            (32 * _WARPS,),
            (
                layout.argument(),
                rows.argument(),
                q,
                upper,
                product.threshold,
                _ROOM,
                found.counts,
                found.rows,
                found.scores,
            ),
            shared=layout.exact_bytes() + 4 * _WARPS * layout.words,
        )
        finish(layout, rows, q, constants, found, k, results)
        return found
    found = Found.empty(nq, _ROOM if nq <= 1024 else _ROOM // 2, device, status)
    periods = [p for p in _PERIODS if p == 1 or blocks * LANES // p >= _SAMPLED * k]
    sample = _Part.of(blocks, periods[0])
    best = torch.empty(nq, sample.count, device=device)
    product.run("best_of", sample, None, None, best)
    kth(best, k, product.threshold)
    del best
    for i, period in enumerate(periods):
        part = _Part.of(blocks, period, periods[i - 1] // period if i else 0)
        product.run("hits_of", part, found, None, None)
        if period > 1:
            finish(layout, rows, q, None, found, k, None, product.threshold)
    finish(layout, rows, q, constants, found, k, results)
    return found
