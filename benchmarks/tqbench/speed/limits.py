"""What the machine allows: its read bandwidth, and the instructions that a line of codes costs the scan."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..memory import available_memory

__all__ = ["LINE", "SCAN_COSTS", "ScanCost", "last_level_cache", "machine_limits", "read_speed"]

LINE = 64  # bytes that the scan takes at a time: four code bytes of each of sixteen rows
_SMALLEST_READ, _LARGEST_READ = 256 << 20, 2 << 30
_REPEATS = 5


@dataclass(frozen=True)
class ScanCost:
    """Instructions of the inner loop of the table scan, for one line of codes and one query.

    Counted in the compiled loop (GCC 12, -O3), everything in it divided by the lines and queries of one pass.

    Attributes
    ----------
    instructions : float
        All of them.
    vector : float
        Those that need a vector arithmetic port: shuffles, dot products, logic, shifts, additions.
    ports : int
        Vector ports of that width: two for 512 bits, three for 256, on Intel's cores.
    issue : int
        Instructions that a core takes a cycle at most.
    """

    instructions: float
    vector: float
    ports: int
    issue: int = 6

    @property
    def cycles(self) -> float:
        """Fewest cycles a line and query."""
        return max(self.vector / self.ports, self.instructions / self.issue)


# (level, queries scanned together) -> cost. A pass of avx512 is 2 lines of one query (36 instructions: 4 vpermb,
# 4 vpdpbusd, 4 vpternlogd, 2 vpsrlw, then loads, prefetches and the loop), or 4 lines of two (69) or of four
# queries (110); of avx2 4 lines of one query (94, of which 72 shuffle, multiply, add or mask), 2 lines of two (86) or
# one line of four (76).
SCAN_COSTS: dict[tuple[str, int], ScanCost] = {
    ("avx512", 1): ScanCost(36 / 2, 14 / 2, 2),
    ("avx512", 2): ScanCost(69 / 8, 44 / 8, 2),
    ("avx512", 4): ScanCost(110 / 16, 76 / 16, 2),
    ("avx2", 1): ScanCost(94 / 4, 72 / 4, 3),
    ("avx2", 2): ScanCost(86 / 4, 60 / 4, 3),
    ("avx2", 4): ScanCost(76 / 4, 54 / 4, 3),
}


def machine_limits(same_sizes: tuple[int, ...] = ()) -> dict[str, Any]:
    """Read bandwidth of one thread and clock, for a record.

    Parameters
    ----------
    same_sizes : tuple of int
        Bytes of code that are scanned at once; those that the last-level cache holds are read faster than memory,
        so each size is measured as well.

    Returns
    -------
    dict
        ``read_bytes`` and ``read_gb_s`` of a buffer past the last-level cache, ``same_size_gb_s`` by size,
        ``clock_ghz`` (nominal; None if unknown), ``last_level_cache`` in bytes, ``simd`` level of our core.
    """
    import tqcore

    size = max(_SMALLEST_READ, 2 * (last_level_cache() or 0))
    free = available_memory()
    size = min(size, _LARGEST_READ, (free or size * 4) // 4)
    return {
        "read_bytes": size,
        "read_gb_s": round(read_speed(size) / 1e9, 2),
        "same_size_gb_s": {str(n): round(read_speed(n) / 1e9, 2) for n in sorted(set(same_sizes))},
        "clock_ghz": _clock(),
        "last_level_cache": last_level_cache(),
        "simd": tqcore.simd_level(),
    }


def read_speed(size: int, threads: int = 1) -> float:
    """Bytes/s at which threads read `size` bytes between them, warm: the best of three plain reads, repeated."""
    held = np.ones(max(64, size // 8 * 8), dtype=np.uint8)
    parts = [_readers(part.view(np.uint8)) for part in np.array_split(held.view(np.int64), threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for reads in zip(*parts, strict=True):
            for _ in range(_REPEATS + 1):
                start = perf_counter()
                if threads == 1:
                    reads[0]()
                else:
                    wait([pool.submit(read) for read in reads])
                best = max(best, len(held) / (perf_counter() - start))
    return best


def _readers(held: np.ndarray) -> list[Callable[[], object]]:
    words = held.view(np.int64)
    readers: list[Callable[[], object]] = [words.max, words.sum]
    try:
        memchr = ctypes.CDLL(None).memchr
    except (OSError, AttributeError, TypeError):
        return readers
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    # A byte that is not there: the C library looks at every line.
    readers.append(lambda: memchr(held.ctypes.data, 255, len(held)))
    return readers


def last_level_cache() -> int | None:
    """Bytes of the largest cache of the first core; None if unknown."""
    sizes = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = entry.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes, default=None)


def _clock() -> float | None:
    try:
        import psutil

        found = psutil.cpu_freq()
    except (ImportError, OSError, RuntimeError, NotImplementedError):
        return None
    return round((found.max or found.current) / 1e3, 3) if found else None
