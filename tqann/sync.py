"""Keeping a file in step with an index: what changed since the last time is appended, and reaches the disk at once."""

from __future__ import annotations

import errno
import os
import secrets
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tqcore.quantizer import Quantizer

from .files import ConcurrentWriterError, Output, disk, named_errors, no_room, replace_file, writing
from .journal import FRAME_HEADER, JOURNAL_HEADER, Frame, Tail, is_complete, pack_frame, parse_frame, read_at
from .storage import Changes

if TYPE_CHECKING:
    from .base import IndexBase

__all__ = ["Attachment", "attach", "sync_index"]

_CHUNK_BYTES = 1 << 22
_SLACK = 1 << 16  # bytes of garbage that no file is rewritten for


@dataclass
class Attachment:
    """The file that an index was last synced with or read from.

    `identity` is its device and inode, `quantizers` and `changes` are those of the index at that time, `written` the
    fields of its last frame. `unsure` says that an append was interrupted.
    """

    path: str
    identity: tuple[int, int]
    tail: Tail
    quantizers: tuple[Quantizer, ...]
    changes: Changes
    written: tuple[Any, ...]
    unsure: bool = False

    def describes(self, index: IndexBase) -> bool:
        """Whether `changes` tells all that the index and the file differ by."""
        vectors = index._vectors
        same = all(mine is q for mine, (q, _) in zip(self.quantizers, vectors.parts(), strict=True))
        return same and vectors.id_map.changes is self.changes and not self.unsure


def attach(index: IndexBase, path: str, status: os.stat_result, tail: Tail) -> None:
    """Remember that `index` is what the file at `path`, of this status, holds up to `tail`."""
    vectors = index._vectors
    changes = vectors.id_map.changes = Changes(len(vectors))
    quantizers = tuple(quantizer for quantizer, _ in vectors.parts())
    written = _fields(index)
    index._attached = Attachment(path, (status.st_dev, status.st_ino), tail, quantizers, changes, written)


def sync_index(index: IndexBase, path: str | os.PathLike[str], compact: bool | None) -> None:
    """See `TurboQuantIndex.sync`."""
    if compact is not None and not isinstance(compact, bool):
        raise TypeError(f"compact must be True, False or None, got {compact!r}")
    target = os.path.realpath(os.fsdecode(path))
    with named_errors(target), writing(target) as alone:
        file = index._attached
        if (
            file is None
            or file.path != target
            or not _still_ours(index, file)
            or compact
            or not file.describes(index)
        ):
            _rewrite(index, target, alone)
        elif _unchanged(index, file):
            return
        elif compact is False or not _mostly_garbage(index, file):
            _append(index, file)
        else:
            try:
                _rewrite(index, target, alone)
            except OSError as error:
                if not no_room(error) or index._attached is not file:
                    raise
                _append(index, file)  # old file and new one do not fit side by side, but the changes may


def _rewrite(index: IndexBase, target: str, alone: bool) -> None:
    from .io import write_with_journal

    salt = secrets.token_bytes(16)
    before = index._attached
    index._attached = None  # until the folder is synced nobody knows which file has the name
    try:
        status, tail = replace_file(target, lambda output: write_with_journal(index, output, salt), alone)
    except BaseException:
        if before is not None and before.path == target and _identity(target) == before.identity:
            index._attached = before
        raise
    attach(index, target, status, tail)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _still_ours(index: IndexBase, file: Attachment) -> bool:
    """Whether the file is there; ConcurrentWriterError unless it is as this index left it or found it."""
    try:
        reader = open(file.path, "rb")  # noqa: SIM115 - a missing file is the one error that is no error
    except FileNotFoundError:
        return False
    with reader:
        status = os.fstat(reader.fileno())
        same = (status.st_dev, status.st_ino) == file.identity and status.st_size >= file.tail.end
        same = same and read_at(reader, file.tail.start, JOURNAL_HEADER)[16:32] == file.tail.salt
        if same and not file.unsure:
            at = file.tail.end
            frame = parse_frame(read_at(reader, at, FRAME_HEADER), file.tail.salt)
            same = frame is None or not is_complete(reader, at, status.st_size, frame, _widths(index))
    if not same:
        rule = "the file must be as this index last read or wrote it, and another writer has changed it"
        raise ConcurrentWriterError(errno.EBUSY, rule, file.path)
    return True


def _fields(index: IndexBase) -> tuple[Any, ...]:
    ids, planner = index._vectors.id_map, index._planner
    stored = ids.stored is not None
    return stored, index.ntotal, ids.next_id, index.refine_factor or 0, planner.error, planner.baseline


def _unchanged(index: IndexBase, file: Attachment) -> bool:
    # A removal that no addition followed shows in ntotal.
    return _fields(index) == file.written and file.changes.low == index.ntotal


def _frame(index: IndexBase, file: Attachment) -> Frame:
    stored, ntotal, next_id, factor, error, baseline = _fields(index)
    tail, changes = file.tail, file.changes
    moved = len(changes.moved())
    return Frame(
        tail.sequence + 1,
        tail.checksum,
        stored,
        ntotal,
        next_id,
        changes.low,
        moved,
        factor,
        float(error),
        float(baseline),
    )


def _widths(index: IndexBase) -> list[tuple[int, int]]:
    return [(quantizer.code_size, quantizer.n_scalars) for quantizer, _ in index._vectors.parts()]


def _mostly_garbage(index: IndexBase, file: Attachment) -> bool:
    """Whether more than half of the file would be garbage after the next frame."""
    fresh = index.ntotal * (index.code_size + (0 if index._id_map.sequential else 8))
    for quantizer, _ in index._vectors.parts():
        fresh += sum(array.nbytes for array in quantizer.plan.arrays().values()) if quantizer.plan else 0
    return file.tail.end + _frame(index, file).size(_widths(index)) > 2 * fresh + _SLACK


def _append(index: IndexBase, file: Attachment) -> None:
    descriptor = disk().open(file.path, os.O_RDWR)
    try:
        tail = _write_frame(index, file, descriptor)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    attach(index, file.path, status, tail)


def _write_frame(index: IndexBase, file: Attachment, descriptor: int) -> Tail:
    frame, tail = _frame(index, file), file.tail
    length = frame.size(_widths(index))
    output = Output(descriptor, tail.end + FRAME_HEADER)
    file.unsure = True
    try:
        if os.fstat(descriptor).st_size > tail.end:  # what an interrupted sync has left
            disk().truncate(descriptor, tail.end)
        checksum = 0
        for chunk in _body(index, file.changes, frame, length):
            output.write(chunk)
            checksum = zlib.crc32(chunk, checksum)
        # The header comes last: before it is written there is no frame.
        header = pack_frame(replace(frame, body=checksum), tail.salt)
        output.seek(tail.end)
        output.write(header)
    except BaseException:
        disk().truncate(descriptor, tail.end)
        file.unsure = False
        raise
    # After an error of this call nobody knows what is on the disk, so that the next sync will write a new file.
    disk().fsync(descriptor)
    return Tail(
        tail.start, tail.end + length, tail.salt, frame.sequence, int.from_bytes(header[-4:], "little")
    )


def _body(index: IndexBase, changes: Changes, frame: Frame, length: int) -> Iterator[Any]:
    """The parts of a frame's body, in order."""
    vectors, moved = index._vectors, changes.moved()
    yield moved.astype("<i8")
    if frame.stored_ids:
        ids = vectors.id_map.stored
        yield np.ascontiguousarray(np.concatenate([ids[moved], ids[frame.low :]]), dtype="<i8")
    for _, storage in vectors.parts():
        yield np.ascontiguousarray(storage.scalars_at(moved), dtype="<f4")
        for rows in _slices(frame, index.code_size):
            yield np.ascontiguousarray(storage.scalars_at(rows), dtype="<f4")
    for _, storage in vectors.parts():
        yield storage.rows(moved)
        for rows in _slices(frame, index.code_size):
            yield storage.rows(rows)
    yield bytes(length - FRAME_HEADER - sum(frame.sizes(_widths(index))))


def _slices(frame: Frame, row_bytes: int) -> Iterator[slice]:
    step = max(16, _CHUNK_BYTES // row_bytes)
    for first in range(frame.low, frame.ntotal, step):
        yield slice(first, min(first + step, frame.ntotal))
