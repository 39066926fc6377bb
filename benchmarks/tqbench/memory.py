"""Resident memory that an index adds, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from .adapters import create
from .methods import Case

__all__ = ["MemoryMeter", "available_memory"]

_ROWS_PER_ADD = 1000


class MemoryMeter:
    """Measures cases on one base [n, d], each in a fresh process; the base is mapped, not counted.

    Used as a context manager: it owns a temporary file with the base.
    """

    def __init__(self, base: np.ndarray, metric: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tqbench-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name) / "base.npy"
        np.save(self._path, base)
        self._metric = metric
        # A server that has the libraries and nothing else forks each process: no start-up cost per case.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["numpy", "faiss", "tqann"])

    def __enter__(self) -> MemoryMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def growth(self, case: Case, trained: bytes | None) -> int | None:
        """Bytes by which the process grew from before the index to after its last add; None if unknown."""
        ours, theirs = self._context.Pipe()
        arguments = (theirs, str(self._path), self._metric, case, trained)
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_measure, args=arguments, daemon=True
        )
        process.start()
        theirs.close()
        try:
            return ours.recv()
        except EOFError:
            return None
        finally:
            process.join()
            ours.close()


def _measure(connection: Connection, path: str, metric: str, case: Case, trained: bytes | None) -> None:
    base = np.load(path, mmap_mode="r")
    create(case, base.shape[1], metric)  # imports and tables of the library come before the first reading
    before = _resident()
    adapter = create(case, base.shape[1], metric)
    adapter.set_threads(1)
    if trained is not None:
        adapter.take_trained(trained)  # type: ignore[attr-defined]
    else:
        adapter.train(base[:_ROWS_PER_ADD])
    step = len(base) if case.method.name == "rabitqlib" else _ROWS_PER_ADD
    for start in range(0, len(base), step):
        adapter.add(base[start : start + step])
    after = _resident()
    connection.send(None if before is None or after is None else after - before)


def _resident() -> int | None:
    """Private resident bytes of this process; freed heap is given back first where the system can."""
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    try:
        import psutil
    except ImportError:
        return None
    return psutil.Process(os.getpid()).memory_info().rss


def available_memory() -> int | None:
    """Bytes that new allocations can take without swapping; None if unknown."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)
