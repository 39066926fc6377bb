"""Processes killed at every call that changes a file, between the bytes of a write among them."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqann import TurboQuantIndex
from tqann.files import using_disk

from .script import Hasty, Script, state_of, unusable

__all__ = ["KillPoint", "KillingDisk", "check_kill", "kill_points"]

CALLS = ("open", "write", "truncate", "fsync", "replace", "unlink", "sync_folder")


@dataclass(frozen=True)
class KillPoint:
    """Death before the call of number `call`; for a write with `kept` > 0 after that share of its bytes, the last
    ones if `from_end`. Each write takes at most `most` bytes."""

    call: int
    kept: float = 0.0
    from_end: bool = False
    most: int = sys.maxsize


class KillingDisk(Hasty):
    """Counts calls and kills its process at a point.

    Parameters
    ----------
    point : KillPoint
    """

    def __init__(self, point: KillPoint) -> None:
        self.point = point
        self.calls: list[str] = []

    def _due(self, name: str) -> bool:
        self.calls.append(name)
        return len(self.calls) - 1 == self.point.call

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        data = data[: self.point.most]
        if self._due("write"):
            kept = min(len(data), max(1, int(self.point.kept * len(data)))) if self.point.kept else 0
            first = len(data) - kept if self.point.from_end else 0
            if kept:
                super().write(descriptor, data[first : first + kept], offset + first)
            _die()
        return super().write(descriptor, data, offset)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _counted(name: str):
    plain = getattr(Hasty, name)

    def call(self: KillingDisk, *arguments):
        if self._due(name):
            _die()
        return plain(self, *arguments)

    return call


for _name in CALLS:
    if _name != "write":
        setattr(KillingDisk, _name, _counted(_name))


def kill_points(script: Script, folder: Path, most: int = sys.maxsize) -> Iterator[KillPoint]:
    """Every call of a script, and for writes four torn forms besides; short writes for a small `most`."""
    disk = KillingDisk(KillPoint(-1, most=most))
    with using_disk(disk):
        script.run(folder / "counted", lambda _: None)
    for call, name in enumerate(disk.calls):
        yield KillPoint(call, most=most)
        if name == "write" and most == sys.maxsize:
            yield KillPoint(call, 1e-9)
            yield KillPoint(call, 0.5)
            yield KillPoint(call, 0.5, from_end=True)
            yield KillPoint(call, 1.0)


def check_kill(
    script: Script,
    states: list[str | None],
    point: KillPoint,
    folder: Path,
    disk: type[KillingDisk] = KillingDisk,
) -> str | None:
    """Run the script in a child that dies at `point`; what is wrong with the file afterwards, None for nothing.

    The file must open as of the last promise the child gave or the one it was giving, must take further syncs, and
    nothing else may be left once it was compacted.
    """
    folder.mkdir()
    path = folder / "index.tqann"
    promised, killed = _run_child(script, point, path, disk)
    if not killed:
        return f"{point}: the child was not killed"
    try:
        found = state_of(path)
    except (OSError, ValueError) as error:
        return f"{point}: {error!r} after {promised} promises"
    if found not in states[promised : promised + 2]:
        last = states.index(found) if found in states else "none"
        return f"{point}: {promised} promises were given, and the file holds state {last}"
    found = found and unusable(path)
    return f"{point}: {found}" if found else None


def _run_child(script: Script, point: KillPoint, path: Path, disk: type[KillingDisk]) -> tuple[int, bool]:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forks beside threads; the child starts none and needs none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(reader)

            def promise(_: TurboQuantIndex) -> None:
                os.write(writer, b"p")

            with using_disk(disk(point)):
                script.run(path, promise)
        finally:
            os._exit(3)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        promised = len(stream.read())
    status = os.waitpid(child, 0)[1]
    return promised, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
