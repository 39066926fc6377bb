"""Exact top-k and range search over codes on CUDA: bounds from fast arithmetic, then exact scores of what is left."""

from __future__ import annotations

import numpy as np
import torch

from tqcore.gpu.layout import LANES, ByteTables, CodeLayout, DeviceRows
from tqcore.gpu.product import Found, batch, finish, search_bytes, sources, takes
from tqcore.gpu.rtc import Kernel, Long, compile_module

__all__ = ["longest", "range_search", "search", "settle"]

_PROCESSORS = 132
_FEW = 8  # queries up to which every one reads the codes by tables
_TABLE_BYTES = 200 << 10
_GROUPS = 32 * _PROCESSORS  # groups of rows whose best lower bounds make a threshold
_CHUNK = 1 << 14  # rows decoded at a time for many queries, which stay in the second-level cache
_LONG_CHUNK = 1 << 17  # and for few, to fill the device
_MANY = 2048
_TIGHTEN = 8  # share of the rows after which thresholds are raised
_SAMPLE = 1 << 15  # rows that a threshold is taken from
_MOST_SAMPLED = 1 << 21
_SAMPLE_BYTES = 1 << 29
_ROOM = 4096  # candidates a query that one block sorts
_DENSE_BYTES = 1 << 30


def _kernel(name: str) -> Kernel:
    return compile_module(sources("rows.cuh", "search.cu")).kernel(name)


def longest(layout: CodeLayout, rows: DeviceRows, first: int = 0) -> tuple[float, float]:
    """Length of the longest reconstruction among rows `first` to n - 1, for the error bounds of `search`.

    And that of the longest difference between a reconstruction and what `layout.bytes` makes of it.
    """
    most = torch.zeros(2, dtype=torch.int32, device=rows.blocks.device)
    if rows.n > first:
        tables = layout.bytes or ByteTables(1.0, 2)
        _kernel("longest")(
            (min(16 * _PROCESSORS, -(-rows.n // LANES)),),
            (256,),
            (
                layout.argument(),
                rows.argument(),
                tables.argument(),
                tables.phases if layout.bytes else 0,
                Long(first),
                most,
            ),
            shared=128 * layout.words,
        )
    # A sum of D squares in float32 is short by less than D / 2^24 of itself.
    length, missed = most.view(torch.float32).sqrt().tolist()
    slack = 1 + layout.d * 2.0**-23
    return length * slack, missed * slack


def search(
    layout: CodeLayout,
    rows: DeviceRows,
    q: torch.Tensor,
    constants: torch.Tensor | None,
    k: int,
    lengths: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best rows of every query under the exact scores of their codes.

    Parameters
    ----------
    layout : CodeLayout
        The code.
    rows : DeviceRows
        What is searched, on torch's current device.
    q : torch.Tensor
        float32 [nq, D], queries in the coordinates of the code.
    constants : torch.Tensor, optional
        float64 [nq]: squared norm for l2, otherwise what every score lacks, by default nothing.
    k : int
        At least 1.
    lengths : tuple of float
        `longest` of the rows, or more.

    Returns
    -------
    D : torch.Tensor
        float32 [nq, k], best first; padded with the worst value of the metric.
    I : torch.Tensor
        int64 [nq, k]; equal scores by smaller id; padded with -1.

    Raises
    ------
    ValueError
        If a query is not finite with a squared norm within float32.
    """
    nq, device = len(q), q.device
    if nq == 0 or rows.n == 0:
        _refuse(q, int(_not_finite(q)))
        distances = torch.full((nq, k), _worst(rows), dtype=torch.float32, device=device)
        return distances, torch.full((nq, k), -1, dtype=torch.int64, device=device)
    q = q.contiguous()
    results = torch.empty(nq, k, device=device), torch.empty(nq, k, dtype=torch.int64, device=device)
    tables = layout.bytes
    if tables is None or not takes(layout, rows, nq, k):
        _refuse(q, int(_not_finite(q)))
        _search_floats(layout, rows, q, constants, k, lengths[0], results)
        return results
    status = torch.empty(2, dtype=torch.int32, pin_memory=True)
    step = batch(rows.n)
    for start in range(0, nq, step):
        part = slice(start, start + step)
        status.numpy()[:] = nq, 0
        own = None if constants is None else constants[part]
        views = results if nq <= step else (results[0][part], results[1][part])
        found = search_bytes(layout, tables, rows, q[part], own, k, lengths, views, status)
        torch.cuda.current_stream().synchronize()
        settle(layout, rows, q[part], own, found, k, lengths, views, status, start)
    return results


def settle(
    layout: CodeLayout,
    rows: DeviceRows,
    q: torch.Tensor,
    constants: torch.Tensor | None,
    found: Found,
    k: int,
    lengths: tuple[float, float],
    results: tuple[torch.Tensor, torch.Tensor],
    status: torch.Tensor,
    first: int = 0,
) -> None:
    """Refuse queries that are not finite and search anew for those with too many candidates, after `search_bytes`.

    `first` is the number of the first of these queries, for the error; other parameters are those of `search_bytes`.
    """
    bad, overflown = status.tolist()
    if bad < len(q):
        raise ValueError(f"x must be finite with squared norms within float32, but row {first + bad} is not")
    if not overflown:
        return
    left = torch.nonzero(found.overflow).flatten()
    again = (
        torch.empty(len(left), k, device=q.device),
        torch.empty(len(left), k, dtype=torch.int64, device=q.device),
    )
    own = None if constants is None else constants[left]
    _search_floats(layout, rows, q[left], own, k, lengths[0], again)
    results[0][left], results[1][left] = again


def _worst(rows: DeviceRows) -> float:
    return torch.finfo(torch.float32).max * (1 if rows.half_norm is not None else -1)


def _not_finite(q: torch.Tensor) -> torch.Tensor:
    """The first row whose squared norm is not finite in float32, or the number of rows."""
    finite = torch.linalg.vecdot(q, q).isfinite()
    return torch.cat([finite, finite.new_zeros(1)]).int().argmin()


def _refuse(q: torch.Tensor, row: int) -> None:
    if row < len(q):
        raise ValueError(f"x must be finite with squared norms within float32, but row {row} is not")


def _search_floats(
    layout: CodeLayout,
    rows: DeviceRows,
    q: torch.Tensor,
    constants: torch.Tensor | None,
    k: int,
    length: float,
    results: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Fill in `results` for any code, by tables of float32 or products of float16."""
    nq = len(q)
    few = nq <= _FEW and 512 * layout.words <= _TABLE_BYTES
    step = max(1, _DENSE_BYTES // (4 * rows.n)) if few else _batch(rows.n, k)
    for start in range(0, nq, step):
        part = slice(start, start + step)
        own, constant = q[part], None if constants is None else constants[part]
        room = _room(rows.n, k)
        found = _scan(layout, rows, own, k, room) if few else _multiply(layout, rows, own, k, room, length)
        found_d, found_i = results[0][part], results[1][part]
        finish(layout, rows, own, constant, found, k, (found_d, found_i))
        worst = _worst(rows)
        for i in torch.nonzero(found.overflow).flatten().tolist():
            d, names = _ranked(layout, rows, own[i], None if constant is None else constant[i], k)
            found_d[i, : len(d)], found_i[i, : len(d)] = d, names
            found_d[i, len(d) :], found_i[i, len(d) :] = worst, -1


def _sampled(n: int, k: int) -> int:
    """Rows that the threshold of a batch comes from: enough that about 2,000 rows reach it at most."""
    wanted = min(max(_SAMPLE, 32 * k, n * k // 1500), _MOST_SAMPLED)
    return n if wanted * 2 > n and n <= _MOST_SAMPLED else min(n, wanted)


def _batch(n: int, k: int) -> int:
    return 4096 if k > 128 or n > 1 << 25 else 16384


def _room(n: int, k: int) -> int:
    """Candidates that a query has room for."""
    expected = 4 * k * max(1, n // _sampled(n, k)) + 256
    return min(_ROOM, max(512, 1 << (expected - 1).bit_length()))


def _threshold(best: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th largest of lower bounds float32 [nq, groups] of different rows; -inf where there are fewer."""
    if best.shape[1] < k:
        return torch.full((len(best),), -torch.inf, device=best.device)
    return torch.topk(best, k, dim=1, sorted=True).values[:, -1].contiguous()


def _scan(layout: CodeLayout, rows: DeviceRows, q: torch.Tensor, k: int, room: int) -> Found:
    """Candidates of a few queries: every code once, by tables of float32."""
    nq, nibbles = len(q), 8 * layout.words
    lut = torch.zeros(nq, nibbles, 16, device=q.device)
    _kernel("tables_of")((-(-16 * layout.d // 256), nq), (256,), (layout.argument(), q, nibbles, lut))
    # Sums of `nibbles` entries, each of a few products, in float32.
    error = (q.abs() @ layout.reach) * ((nibbles + 64) * 2.0**-24 * 1.01)
    blocks = -(-rows.n // LANES)
    per_group = max(1, -(-blocks // max(_GROUPS, 8 * k)))
    groups = -(-blocks // per_group)
    upper = torch.empty(nq, rows.n, device=q.device)
    best = torch.empty(nq, groups, device=q.device)
    grid = min(4 * _PROCESSORS, -(-groups // 8))
    _kernel("scan")(
        (grid, nq),
        (256,),
        (rows.argument(), layout.words, lut, error, per_group, groups, upper, best),
        shared=512 * layout.words,
    )
    found = Found.empty(nq, room, q.device)
    grid = min(4 * _PROCESSORS, -(-rows.n // 256))
    args = (upper, Long(rows.n), _threshold(best, k), room, found.counts, found.rows)
    _kernel("collect")((grid, nq), (256,), args)
    return found


class _Halves:
    """Decoded rows in float16, a chunk at a time in one buffer."""

    def __init__(self, layout: CodeLayout, rows: DeviceRows, room: int) -> None:
        self._layout, self._rows = layout, rows
        device = rows.blocks.device
        stride = -(-layout.d // 64) * 64
        self.y = torch.zeros(room, stride, dtype=torch.float16, device=device)
        self.scale = torch.empty(room, device=device)
        self.high, self.low = torch.empty(room, device=device), torch.empty(room, device=device)

    def decode(self, first: int, step: int, count: int) -> None:
        """Fill in rows first, first + step, ..., `count` of them; places after them take no part."""
        if count < len(self.high):
            self.high[count:], self.low[count:] = -torch.inf, -torch.inf
            self.scale[count:] = 0
        _kernel("half_rows")(
            (-(-count // LANES),),
            (min(512, self.y.shape[1] // 2),),
            (
                self._layout.argument(),
                self._rows.argument(),
                Long(first),
                Long(step),
                count,
                self.y.shape[1],
                self.y,
                self.scale,
                self.high,
                self.low,
            ),
            shared=132 * self._layout.words,
        )


def _multiply(
    layout: CodeLayout, rows: DeviceRows, q: torch.Tensor, k: int, room: int, length: float
) -> Found:
    """Candidates of many queries: matrix products of float16 with chunks of decoded rows."""
    from tqcore.gpu.filter import BLOCK_QUERIES, BLOCK_ROWS, filter_rows

    nq, d = q.shape
    padded = -(-nq // BLOCK_QUERIES) * BLOCK_QUERIES
    # Queries are brought near 1 by a power of two, which rounds nothing.
    exponent = torch.frexp(q.abs().amax(dim=1)).exponent.to(torch.float32)
    gain = torch.exp2(exponent)
    half = torch.zeros(padded, -(-d // 64) * 64, dtype=torch.float16, device=q.device)
    half[:nq, :d] = q / gain[:, None]
    rounded = half[:nq, :d].float() * gain[:, None]
    norm = torch.linalg.vector_norm(rounded, dim=1)
    # Rounding of the query, of the row (2^-11 of each coordinate), and of sums in float32.
    error = (torch.linalg.vector_norm(q - rounded, dim=1) + norm * (1.05 * 2.0**-11 + d * 2.0**-22)) * (
        length * 1.01
    )
    found = Found.empty(padded, room, q.device)
    threshold = torch.full((padded,), torch.inf, device=q.device)
    threshold[:nq] = _sample_threshold(layout, rows, half[:nq], gain, error, k)
    gain, error = _padded(gain, padded), _padded(error, padded)
    chunk = min(_CHUNK if nq > _MANY else _LONG_CHUNK, -(-rows.n // BLOCK_ROWS) * BLOCK_ROWS)
    halves = _Halves(layout, rows, chunk)
    bits = torch.empty(padded, chunk // 32, dtype=torch.int32, device=q.device)
    tightened = nq <= _MANY or k > room
    for first in range(0, rows.n, chunk):
        halves.decode(first, 1, min(chunk, rows.n - first))
        filter_rows(half, halves.y, halves.scale, halves.high, gain, error, threshold, bits)
        total = nq * bits.shape[1]
        _kernel("collect_bits")(
            (min(16 * _PROCESSORS, -(-total // 256)),),
            (256,),
            (bits, bits.shape[1], Long(total), first, room, found.counts, found.rows),
        )
        if not tightened and (first + chunk) * _TIGHTEN >= rows.n:
            finish(layout, rows, q, None, found, k, None, threshold)
            tightened = True
    return Found(found.counts[:nq], found.rows[:nq], found.overflow[:nq])


def _padded(values: torch.Tensor, n: int) -> torch.Tensor:
    return torch.cat([values, values.new_zeros(n - len(values))])


def _sample_threshold(
    layout: CodeLayout, rows: DeviceRows, half: torch.Tensor, gain: torch.Tensor, error: torch.Tensor, k: int
) -> torch.Tensor:
    """Lower bounds float32 [nq] of the k-th best score, from rows spread evenly over all."""
    count = _sampled(rows.n, k)
    group = 1
    while group < 32 and count // (2 * group) >= 16 * k:
        group *= 2
    count = count // group * group
    halves = _Halves(layout, rows, count)
    halves.decode(0, max(1, rows.n // count), count)
    parts = []
    step = max(1, _SAMPLE_BYTES // (4 * count))
    for start in range(0, len(half), step):
        part = slice(start, start + step)
        products = torch.mm(half[part], halves.y.T, out_dtype=torch.float32)
        best = torch.empty(len(products), count // group, device=half.device)
        _kernel("group_best")(
            (len(products),),
            (256,),
            (products, count, count // group, gain[part], error[part], halves.scale, halves.low, best),
        )
        parts.append(_threshold(best, k))
    return torch.cat(parts)


def _exact(layout: CodeLayout, rows: DeviceRows, q: torch.Tensor) -> torch.Tensor:
    """Exact scores float64 [n] of one query float32 [D]; -inf for rows that take no part."""
    scores = torch.empty(rows.n, dtype=torch.float64, device=q.device)
    warps = 8 if layout.words <= 512 else 2
    grid = min(32 * _PROCESSORS, -(-rows.n // warps))
    _kernel("exact")(
        (grid,),
        (32 * warps,),
        (layout.argument(), rows.argument(), q, scores),
        shared=layout.exact_bytes() + 4 * warps * layout.words,
    )
    return scores


def _distance(rows: DeviceRows, scores: torch.Tensor, constant: torch.Tensor | None) -> torch.Tensor:
    if constant is None:
        return scores.float()
    if rows.half_norm is None:
        return (scores + constant).float()
    return (constant - 2 * scores).clamp_min(0).float()


def _names(rows: DeviceRows, positions: torch.Tensor) -> torch.Tensor:
    return positions if rows.ids is None else rows.ids[positions]


def _ranked(
    layout: CodeLayout, rows: DeviceRows, q: torch.Tensor, constant: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of all rows for one query, by exact scores alone: for ties and for very large k."""
    scores = _exact(layout, rows, q)
    positions = torch.nonzero(scores > -torch.inf).flatten()
    if len(positions) > k:
        positions = positions[scores[positions] >= torch.topk(scores[positions], k).values[-1]]
    names = _names(rows, positions)
    order = torch.argsort(names)
    order = order[torch.sort(-scores[positions][order], stable=True).indices[:k]]
    return _distance(rows, scores[positions[order]], constant), names[order]


def range_search(
    layout: CodeLayout, rows: DeviceRows, q: torch.Tensor, constants: torch.Tensor | None, radius: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All rows strictly inside `radius`: l2 distances below it, inner products above it.

    Parameters are those of `search`.

    Returns
    -------
    lims : torch.Tensor
        int64 [nq + 1]; query i has the results ``lims[i]`` to ``lims[i + 1] - 1``, best first.
    D, I : torch.Tensor
        float32 and int64 [lims[-1]].
    """
    l2 = rows.half_norm is not None
    _refuse(q, int(_not_finite(q)))
    limit = float(np.float32(radius))
    distances, labels, lims = [], [], [0]
    for i in range(len(q)):
        scores = _exact(layout, rows, q[i].contiguous())
        values = _distance(rows, scores, None if constants is None else constants[i])
        inside = (values < limit if l2 else values > limit) & (scores > -torch.inf)
        positions = torch.nonzero(inside).flatten()
        names = _names(rows, positions)
        order = torch.argsort(names)
        key = values[positions][order]
        order = order[torch.sort(key, stable=True, descending=not l2).indices]
        distances.append(values[positions[order]])
        labels.append(names[order])
        lims.append(lims[-1] + len(positions))
    device = q.device
    empty = torch.zeros(0, device=device)
    return (
        torch.tensor(lims, dtype=torch.int64, device=device),
        torch.cat([empty, *distances]),
        torch.cat([empty.long(), *labels]),
    )
