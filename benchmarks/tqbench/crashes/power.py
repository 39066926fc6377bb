"""A disk that loses power: of what was not synced any part is there afterwards, in any order, torn anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tqann.files import Disk, using_disk

from .script import Script, state_of, unusable

__all__ = ["POLICIES", "PowerLoss", "RecordingDisk", "power_losses"]

PART = 64  # bytes of a write that come or go together; disks promise 512 or more
POLICIES = ("all", "none", "some writes", "some parts", "last write", "zeros", "garbage")
NAMES = ("all", "none", "some")


@dataclass(frozen=True)
class Event:
    """One call: `file` is a number that a file keeps when it is renamed; -1 for calls on names alone."""

    call: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    names: tuple[str, ...] = ()


@dataclass
class RecordingDisk(Disk):
    """Does what it is told and keeps a list of it.

    Parameters
    ----------
    events : list of Event
    """

    events: list[Event] = field(default_factory=list)
    _files: dict[str, int] = field(default_factory=dict)
    _open: dict[int, int] = field(default_factory=dict)

    def begin(self, path: str, content: bytes) -> None:
        """Let `path` hold `content`, synced."""
        self._files[path] = 0
        self.events += [Event("create", 0, names=(path,)), Event("write", 0, 0, content), Event("fsync", 0)]
        self.events.append(Event("sync_folder"))

    def open(self, path: str, flags: int) -> int:
        descriptor = super().open(path, flags)
        if path not in self._files:
            self._files[path] = len(self.events)
            self.events.append(Event("create", self._files[path], names=(path,)))
        self._open[descriptor] = self._files[path]
        return descriptor

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        count = super().write(descriptor, data, offset)
        self.events.append(Event("write", self._open[descriptor], offset, bytes(data[:count])))
        return count

    def truncate(self, descriptor: int, length: int) -> None:
        super().truncate(descriptor, length)
        self.events.append(Event("truncate", self._open[descriptor], length))

    def fsync(self, descriptor: int) -> None:
        self.events.append(Event("fsync", self._open[descriptor]))

    def replace(self, source: str, target: str) -> None:
        super().replace(source, target)
        self._files[target] = self._files.pop(source)
        self.events.append(Event("replace", self._files[target], names=(source, target)))

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.events.append(Event("unlink", self._files.pop(path), names=(path,)))

    def sync_folder(self, folder: str) -> None:  # noqa: ARG002
        self.events.append(Event("sync_folder"))


@dataclass(frozen=True)
class PowerLoss:
    """The number of calls before the loss, what is kept of unsynced data, and of unsynced names."""

    calls: int
    data: str
    names: str
    seed: int


def power_losses(
    script: Script,
    folder: Path,
    start: bytes = b"",
    every: int = 1,
    recover: int = 1,
    disk: type[RecordingDisk] = RecordingDisk,
) -> Iterator[tuple[PowerLoss, dict[str, bytes], str | None]]:
    """Yield losses of power in a run of `script`, behind one call in `every`.

    With each come the files it has left and what is wrong with the index file, None for nothing. After one loss in
    `recover` the file must take further syncs. `start` is what the index file holds when the run begins, safe on the
    disk; by default there is none.
    """
    recorder, path, expected = disk(), folder / "index.tqann", folder / "expected"
    if start:
        path.write_bytes(start)
        expected.write_bytes(start)
        recorder.begin(str(path), start)
    first = len(recorder.events)
    states = script.states(expected)
    with using_disk(recorder):
        script.run(path, lambda _: recorder.events.append(Event("promise")))
    work = folder / "left"
    work.mkdir()
    seed = 0
    for calls in range(first + 1, len(recorder.events) + 1, every):
        before = recorder.events[:calls]
        promised = sum(event.call == "promise" for event in before)
        for data, names in _choices(before):
            seed += 1
            loss = PowerLoss(calls, data, names, seed)
            files = left_over(before, loss)
            for name, content in files.items():
                (work / os.path.basename(name)).write_bytes(content)
            yield loss, files, _wrong(work / path.name, states, promised, seed % recover == 0)
            for entry in work.iterdir():
                entry.unlink()


def _choices(events: list[Event]) -> Iterator[tuple[str, str]]:
    """Ways in which the last calls may be kept or lost, where there are any."""
    data = POLICIES if any(_unsynced_data(events).values()) else POLICIES[:1]
    names = NAMES if _unsynced_names(events) else NAMES[:1]
    for policy in data:
        for kept in names:
            yield policy, kept


def _wrong(path: Path, states: list[str | None], promised: int, recover: bool) -> str | None:
    try:
        found = state_of(path)
    except (OSError, ValueError) as error:
        return f"{error!r} after {promised} promises"
    if found in states[promised : promised + 2]:
        return unusable(path) if found and recover else None
    last = states.index(found) if found in states else "none"
    return f"{promised} promises were given, and the file holds state {last}"


def _unsynced_data(events: list[Event]) -> dict[int, list[Event]]:
    """Writes and truncations of each file since it was synced."""
    waiting: dict[int, list[Event]] = {}
    for event in events:
        if event.call in ("write", "truncate"):
            waiting.setdefault(event.file, []).append(event)
        elif event.call == "fsync":
            waiting[event.file] = []
    return waiting


def _unsynced_names(events: list[Event]) -> list[Event]:
    waiting: list[Event] = []
    for event in events:
        if event.call == "sync_folder":
            waiting = []
        elif event.names:
            waiting.append(event)
    return waiting


def left_over(events: list[Event], loss: PowerLoss) -> dict[str, bytes]:
    """Name -> content of the files that are there after a loss of power behind `events`."""
    rng = np.random.default_rng(loss.seed)
    waiting = _unsynced_data(events)
    contents: dict[int, bytearray] = {}
    for event in events:
        if event.call == "create":
            contents[event.file] = bytearray()
        elif event.call in ("write", "truncate") and not any(
            event is late for late in waiting.get(event.file, ())
        ):
            _apply(contents[event.file], event)
    for file, late in waiting.items():
        _apply_some(contents[file], late, loss.data, rng)
    names: dict[str, int] = {}
    uncertain = _unsynced_names(events)
    for event in events:
        if event.names and not any(event is late for late in uncertain):
            _rename(names, event)
    for event in uncertain:
        if loss.names == "all" or (loss.names == "some" and rng.random() < 0.5):
            _rename(names, event)
    return {name: bytes(contents[file]) for name, file in names.items()}


def _apply(content: bytearray, event: Event) -> None:
    if event.call == "truncate":
        del content[event.offset :]
        content.extend(bytes(event.offset - len(content)))
        return
    content.extend(bytes(max(0, event.offset - len(content))))
    content[event.offset : event.offset + len(event.data)] = event.data


def _apply_some(content: bytearray, events: list[Event], policy: str, rng: np.random.Generator) -> None:
    """Apply those of `events` that the loss of power has left."""
    if policy in ("zeros", "garbage"):  # the file has grown, but what it was given is not there
        end = max((event.offset + len(event.data) for event in events), default=0)
        missing = max(0, end - len(content))
        content.extend(bytes(missing) if policy == "zeros" else rng.bytes(missing))
        return
    for event in events:
        parts = _parts(event) if policy == "some parts" and event.call == "write" else iter((event,))
        for part in parts:
            lucky = policy.startswith("some") and rng.random() < 0.5
            if lucky or policy == "all" or (policy == "last write" and event is events[-1]):
                _apply(content, part)


def _parts(event: Event) -> Iterator[Event]:
    start, end = event.offset, event.offset + len(event.data)
    while start < end:
        stop = min(end, (start // PART + 1) * PART)
        yield Event("write", event.file, start, event.data[start - event.offset : stop - event.offset])
        start = stop


def _rename(names: dict[str, int], event: Event) -> None:
    if event.call == "create":
        names[event.names[0]] = event.file
    elif event.call == "unlink":
        names.pop(event.names[0], None)
    else:
        names.pop(event.names[0], None)
        names[event.names[1]] = event.file
