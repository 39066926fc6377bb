"""Searches of few queries as CUDA graphs: one launch for all kernels, for shapes that come again."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch

from tqcore.gpu.layout import LANES, DeviceRows
from tqcore.gpu.product import fetch, search_bytes, takes
from tqcore.gpu.quantizer import DeviceQuantizer
from tqcore.gpu.search import settle

__all__ = ["Replays"]

_MOST_QUERIES = 1024  # beyond, launches are a small part of the time
_MOST_BOUNDS = 1 << 24  # of scratch, in values of 4 bytes
_KEPT = 4  # graphs, each with its scratch
_SEEN = 16


def _repeats(coder: DeviceQuantizer, rows: DeviceRows, nq: int, k: int) -> bool:
    """Whether a search of `nq` queries is worth a graph, and its scratch worth keeping."""
    if not 0 < nq <= _MOST_QUERIES or rows.n == 0 or rows.mask is not None:
        return False
    bounds = rows.n if nq <= 8 else rows.n // LANES
    return nq * bounds <= _MOST_BOUNDS and takes(coder.layout, rows, nq, k)


class _Replay:
    """One captured search: its kernels look up where queries and results lie, so that nothing is copied outside."""

    def __init__(
        self,
        coder: DeviceQuantizer,
        rows: DeviceRows,
        q: torch.Tensor,
        k: int,
        metric: str,
        lengths: tuple[float, float],
    ) -> None:
        self._coder, self.rows, self._k, self.lengths = coder, rows, k, lengths
        self._lock = threading.Lock()
        self._status = torch.empty(2, dtype=torch.int32, pin_memory=True)
        self._flags = self._status.numpy()
        self._flags[:] = len(q), 0
        self._addresses = torch.zeros(3, dtype=torch.int64, pin_memory=True)
        self._given = self._addresses.numpy()
        self._q = torch.empty_like(q)
        self._graph = torch.cuda.CUDAGraph()
        tables = coder.layout.bytes
        if tables is None:
            raise ValueError("coder must have a code with tables of bytes")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Other threads may allocate meanwhile.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                results = fetch(self._addresses, self._q)
                rotated, self._constants = coder.query(self._q, metric)
                self._rotated = rotated.contiguous()
                self._found = search_bytes(
                    coder.layout,
                    tables,
                    rows,
                    self._rotated,
                    self._constants,
                    k,
                    lengths,
                    results,
                    self._status,
                )
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(self, q: torch.Tensor, stream: torch.cuda.Stream) -> tuple[torch.Tensor, torch.Tensor]:
        nq, k = len(q), self._k
        # Labels, then distances: one allocation, and the views are made while the device works.
        both = torch.empty(nq * k + (nq * k + 1) // 2, dtype=torch.int64, device=q.device)
        at = both.data_ptr()
        with self._lock:
            self._flags[:] = nq, 0
            self._given[:] = q.data_ptr(), at + 8 * nq * k, at
            self._graph.replay()
            distances = both[nq * k :].view(torch.float32)[: nq * k].view(nq, k)
            results = distances, both[: nq * k].view(nq, k)
            stream.synchronize()
            settle(
                self._coder.layout,
                self.rows,
                self._rotated,
                self._constants,
                self._found,
                k,
                self.lengths,
                results,
                self._status,
            )
        return results


class Replays:
    """Graphs of the searches of one store, by shape, metric and stream.

    A search that comes a second time is captured, which keeps its scratch: at most 64 MB of bounds, and room for
    candidates, for each of the last four shapes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured: OrderedDict[tuple[object, ...], _Replay] = OrderedDict()
        self._seen: OrderedDict[tuple[object, ...], None] = OrderedDict()

    def clear(self) -> None:
        """Forget all graphs: the rows that they read are about to change."""
        with self._lock:
            self._captured.clear()
            self._seen.clear()

    def search(
        self,
        coder: DeviceQuantizer,
        rows: DeviceRows,
        q: torch.Tensor,
        k: int,
        metric: str,
        lengths: tuple[float, float],
        stream: torch.cuda.Stream,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Results of `tqcore.gpu.search.search` for queries float32 [nq, d] as given, on torch's current stream.

        None the first time, and for searches that are worth no graph or whose scratch is not worth keeping.
        """
        key = (len(q), k, metric, stream.cuda_stream)
        with self._lock:
            replay = self._captured.get(key)
            if replay is None or replay.rows is not rows or replay.lengths != lengths:
                if not _repeats(coder, rows, len(q), k):
                    return None
                if key not in self._seen:
                    self._seen[key] = None  # the first search compiles, which no graph can hold
                    if len(self._seen) > _SEEN:
                        self._seen.popitem(last=False)
                    return None
                self._captured.pop(key, None)
                while len(self._captured) >= _KEPT:
                    self._captured.popitem(last=False)
                replay = self._captured[key] = _Replay(coder, rows, q, k, metric, lengths)
            self._captured.move_to_end(key)
        return replay(q, stream)
