"""The work that crashes interrupt: changes to an index, and the moments at which its file is promised to hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tqann import TurboQuantIndex, read_index
from tqann.files import Disk, using_disk
from tqann.io import to_bytes

__all__ = ["SCRIPTS", "Hasty", "Script", "state_of", "unusable"]

D = 8


class Hasty(Disk):
    """Waits for no disk: what a process wrote outlives it even so, and the loss of power is simulated."""

    def fsync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, folder: str) -> None:
        pass


def state_of(path: Path) -> str | None:
    """A digest of all that the index file at `path` holds; None where there is no file."""
    if not path.exists():
        return None
    return _digest(read_index(path))


def unusable(path: Path) -> str | None:
    """What is wrong with going on from the file at `path`, alone in its folder: None if it takes further syncs."""
    index = read_index(path)
    index.threads = 1
    with using_disk(Hasty()):
        for compact in (None, True):
            index.add(np.ones((2, index.d), np.float32))
            index.sync(path, compact)
            if state_of(path) != _digest(index):
                return "a sync after recovery does not read back"
    left = [entry.name for entry in path.parent.iterdir()]
    return None if left == [path.name] else f"{left} were left behind"


def _digest(index: TurboQuantIndex) -> str:
    return hashlib.blake2b(to_bytes(index), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Script:
    """Changes to an index of the given options, synced, compacted, saved and reopened in turn.

    `steps` counts the promises: syncs, compactions and saves that returned.
    """

    name: str
    steps: int
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, path: Path, promised: Callable[[TurboQuantIndex], None]) -> None:
        """Do the work on `path`, going on from the index there if there is one.

        `promised` is called with the index each time that the file is promised to hold what it holds.
        """
        rng = np.random.default_rng(self.seed)
        pool = rng.standard_normal((256, D)).astype(np.float32)
        if path.exists():
            index = read_index(path)
            index.threads = 1
            _change(index, pool, rng)
        else:
            index = TurboQuantIndex(D, 2, threads=1, **self.options)
            index.add(pool[:40])
        for step in range(self.steps):
            if step % 11 == 7:
                index.save(path)
            else:
                index.sync(path, compact=True if step % 9 == 5 else None)
            promised(index)
            if step % 6 == 4:
                index = read_index(path, mmap=step % 12 == 4)
                index.threads = 1
            _change(index, pool, rng)

    def states(self, path: Path) -> list[str | None]:
        """Digests of the file before the first promise and after each, from a run that nothing interrupts."""
        digests = [state_of(path)]
        self.run(path, lambda index: digests.append(_digest(index)))
        return digests


def _change(index: TurboQuantIndex, pool: np.ndarray, rng: np.random.Generator) -> None:
    """Change the index at random; the next state is never the one before."""
    index.add(pool[rng.integers(0, len(pool), rng.integers(1, 12))])
    kind = rng.integers(0, 5)
    if kind == 0:
        index.remove_ids(rng.choice(index.ids, 5, replace=False))
    elif kind == 1:
        index.remove_ids(index.ids[-15:])
        index.add(pool[:3])
    elif kind == 2:
        index.add_with_ids(pool[:2], index.ids.max() + np.array([9, 4]))


SCRIPTS = (
    Script("l2", 30),
    Script("removals", 30, 1, {"metric": "ip"}),
    Script("refined", 24, 2, {"refine_bits": 4}),
    Script("plan", 24, 3, {"metric": "cosine", "plan": "calibrated"}),
)
