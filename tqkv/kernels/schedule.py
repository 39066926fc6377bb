"""How a launch of the decode kernel is shared out over the multiprocessors: a choice from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

__all__ = ["choose", "waits", "warps"]

_LONG = 100  # tiles a multiprocessor from which a block of more warps pays
_IN_FLIGHT = 5  # partial results that are read at a time
# Times in tiles: of a block's start and end, of reading partial results, of blocks that do not wait for each other.
_FIXED, _BATCH, _APART = 45, 2, 12
_WINDOWS = 4  # that a block serves, at most


def warps(head_dim: int, tiles: float) -> int:
    """Warps of a block, for as many tiles a multiprocessor: fewer start and end sooner, more wait less in between."""
    if head_dim <= 128:
        return 16 if tiles > _LONG / 2 else 8
    return 12 if tiles > _LONG else 8


def waits(pairs: int, queries: int, splits: int, windows: int, multiprocessors: int) -> bool:
    """Whether blocks may wait for each other: all run at once, and of a row one is there to finish every query."""
    blocks = pairs * splits + (-(-pairs // windows) if windows else 0)
    return blocks <= multiprocessors and splits + (windows == 1) >= queries


@lru_cache(maxsize=1024)
def choose(
    pairs: int, tiles: int, extra: int, queries: int, multiprocessors: int, warps: int
) -> tuple[int, int]:
    """Parts of the packed tokens of each of `pairs` query blocks of `tiles` tiles, and windows that a block serves.

    A query block has `queries` queries. A window is the `extra` tokens in full precision of one; with none, no block
    serves any. The choice is what should end soonest. A multiprocessor runs a block at a time. Blocks that serve
    windows come last: they fill what the last turn leaves idle, and take one more turn where that does not suffice.
    More than one window a block is for blocks that may wait for each other then, and a few windows only: a block whose
    place is taken by another kernel comes late.
    """
    steps = warps  # tiles at a time: two a pair of warps
    most = max(1, min(-(-tiles // steps), -(-4 * multiprocessors // pairs)))
    window = _FIXED + extra // 16

    def cost(splits: int, windows: int) -> tuple[int, int, int]:
        each = -(-tiles // (splits * steps)) * steps + _FIXED
        turns = -(-pairs * splits // multiprocessors)
        time = turns * each
        if windows:
            blocks, serving = -(-pairs // windows), windows * window
            idle = turns * multiprocessors - pairs * splits
            late = max(0, blocks - each // serving * idle)
            ends = [time + -(-late // multiprocessors) * serving]
            if idle:
                ends.append(time - each + -(-blocks // idle) * serving)
            time = max(time, min(ends))
        if not waits(pairs, queries, splits, windows, multiprocessors):
            time += _APART
        return time + -(-(splits + (windows > 0)) // _IN_FLIGHT) * _BATCH, splits, windows

    def choices() -> Iterator[tuple[int, int]]:
        for splits in range(1, most + 1):
            yield splits, int(extra > 0)
            idle = multiprocessors - pairs * splits
            windows = -(-pairs // idle) if extra and idle > 0 else 1
            if 1 < windows <= _WINDOWS and waits(pairs, queries, splits, windows, multiprocessors):
                yield splits, windows

    return min(cost(*choice) for choice in choices())[1:]
