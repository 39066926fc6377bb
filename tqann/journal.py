r"""The journal of an index file, version 1: what its bytes mean, and how an index is brought up to its end.

It follows the sections of an index file of version 2. All integers are little-endian.

    offset  bytes
    0       8      magic, b"\x93TQLOG\r\n"
    8       4      journal version, uint32
    12      4      zero
    16      16     salt, random
    32      4      checksum of the index file's header, uint32
    36      24     zero
    60      4      CRC-32 of bytes 0 to 59, uint32
    64      -      frames, each from a multiple of 64 on, in order of time

A frame holds what one sync changed:

    0       8      magic, b"\x93TQFRM\r\n"
    8       16     salt of the journal
    24      8      its number, from 1 on, uint64
    32      4      checksum at the end of the header before it, that of the last frame or of the journal, uint32
    36      4      1 if ids are stored, 0 while every id is its position, uint32
    40      8      ntotal, uint64
    48      8      next_id, uint64
    56      8      low, uint64: rows from here on are new, and those of the last state are dropped
    64      8      moved, uint64: rows below low that are new
    72      8      candidates for each result, uint64; 0 without a finer code
    80      16     planning.error and planning.baseline, float64
    96      24     zero
    120     4      CRC-32 of the body, uint32
    124     4      CRC-32 of bytes 0 to 123, uint32
    128     -      body: positions, int64 [moved], increasing; ids, int64 [m], if stored; of each code scalars, float32
                   [m, n_scalars]; of each code codes, uint8 [m, code_size]; zero bytes to a multiple of 64.
                   m = moved + ntotal - low: the moved rows, then those from low on

The journal ends before the first frame that is not complete: one whose sync was interrupted. As a sync returns only
when its frame has reached the disk, and none begins before, what follows can be no frame; if it is one, the file is
damaged. Damage to the last frame looks like an interrupted sync.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .format import Header, IndexFileError, aligned
from .storage import CodeStorage, grown

__all__ = [
    "FRAME_HEADER",
    "JOURNAL_HEADER",
    "Frame",
    "Tail",
    "apply_journal",
    "is_complete",
    "pack_frame",
    "pack_journal_header",
    "parse_frame",
    "read_at",
]

MAGIC = b"\x93TQLOG\r\n"
VERSION = 1
FRAME_MAGIC = b"\x93TQFRM\r\n"
JOURNAL_HEADER = 64
FRAME_HEADER = 128
_JOURNAL = struct.Struct("<8sII16sI24s")
_FRAME = struct.Struct("<8s16sQIIQQQQQdd24sI")
_CRC = struct.Struct("<I")
_CHUNK_BYTES = 1 << 22
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Frame:
    """The header of a frame, by the names of the fields; `factor` is 0 without a finer code."""

    sequence: int
    previous: int
    stored_ids: bool
    ntotal: int
    next_id: int
    low: int
    moved: int
    factor: int
    error: float
    baseline: float
    body: int = 0

    @property
    def rows(self) -> int:
        """Number of rows in the body."""
        return self.moved + self.ntotal - self.low

    def sizes(self, widths: Iterable[tuple[int, int]]) -> list[int]:
        """Return the bytes of positions, ids, scalars of each code and codes of each code.

        `widths` are (code_size, n_scalars) of each code.
        """
        widths = list(widths)
        sizes = [8 * self.moved, 8 * self.rows if self.stored_ids else 0]
        sizes += [4 * count * self.rows for _, count in widths]
        return sizes + [size * self.rows for size, _ in widths]

    def size(self, widths: Iterable[tuple[int, int]]) -> int:
        """Return the bytes of the frame, header and padding included."""
        return aligned(FRAME_HEADER + sum(self.sizes(widths)))


@dataclass(frozen=True)
class Tail:
    """The journal of a file as far as it is valid: where it starts and ends, its salt, and the last header in it."""

    start: int
    end: int
    salt: bytes
    sequence: int
    checksum: int


def pack_journal_header(salt: bytes, base: int) -> bytes:
    """Return the header of a journal with `salt` behind an index file whose header has the checksum `base`."""
    data = _JOURNAL.pack(MAGIC, VERSION, 0, salt, base, bytes(24))
    return data + _CRC.pack(zlib.crc32(data))


def pack_frame(frame: Frame, salt: bytes) -> bytes:
    """Return the header of a frame; its last four bytes are its checksum."""
    data = _FRAME.pack(
        FRAME_MAGIC,
        salt,
        frame.sequence,
        frame.previous,
        int(frame.stored_ids),
        frame.ntotal,
        frame.next_id,
        frame.low,
        frame.moved,
        frame.factor,
        frame.error,
        frame.baseline,
        bytes(24),
        frame.body,
    )
    return data + _CRC.pack(zlib.crc32(data))


def parse_frame(data: bytes, salt: bytes) -> Frame | None:
    """Return the frame that the 128 bytes of `data` are the header of; None if they are not one with this salt.

    Raises IndexFileError for a header that is signed and still says what no frame may say.
    """
    if len(data) != FRAME_HEADER or data[:8] != FRAME_MAGIC or data[8:24] != salt:
        return None
    if _CRC.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
        return None
    fields = _FRAME.unpack(data[:-4])
    sequence, previous, stored, ntotal, next_id, low, moved, factor, error, baseline, reserved, body = fields[
        2:
    ]
    if stored > 1 or any(reserved):
        raise IndexFileError(f"a frame of the journal has fields this version does not know: {stored}")
    if low > ntotal:
        raise IndexFileError(f"low of a frame must be at most ntotal = {ntotal}, got {low}")
    for name, value in (("error", error), ("baseline", baseline)):
        if not 0 <= value < math.inf:
            raise IndexFileError(f"{name} of a frame must be a number >= 0, got {value}")
    return Frame(sequence, previous, bool(stored), ntotal, next_id, low, moved, factor, error, baseline, body)


def read_at(file: Any, offset: int, length: int) -> bytes:
    """Return at most `length` bytes of a binary file from `offset` on."""
    file.seek(offset)
    return file.read(length)


def apply_journal(
    file: Any, start: int, size: int, header: Header, storages: Sequence[CodeStorage], ids: np.ndarray | None
) -> tuple[Header, np.ndarray | None, Tail]:
    """Bring what the sections of a file hold up to the end of its journal.

    Parameters
    ----------
    file : binary file
    start, size : int
        Where the journal begins, and the bytes of the file.
    header : Header
    storages : sequence of CodeStorage
        Of each code; changed in place.
    ids : ndarray, optional
        int64 [ntotal].

    Returns
    -------
    header, ids, tail
        Header and ids (None while every id is its position) of the last complete sync, and where that ends.

    Raises
    ------
    IndexFileError
        For a journal of another kind, and for one that is damaged before its last frame.
    """
    base = _CRC.unpack(read_at(file, 16, 4))[0]
    tail = _opened(read_at(file, start, JOURNAL_HEADER), start, base)
    widths = [(code.code_size, code.quantizer.n_scalars) for code in header.codes]
    while tail.end < size:
        data = read_at(file, tail.end, FRAME_HEADER)
        frame = parse_frame(data, tail.salt)
        if frame is None:
            break
        _check(frame, tail, header)
        length = frame.size(widths)
        if not is_complete(file, tail.end, size, frame, widths):
            break
        ids = _apply(file, tail.end, frame, storages, ids, widths)
        header = replace(
            header,
            ntotal=frame.ntotal,
            next_id=frame.next_id,
            refine_factor=frame.factor or None,
            planning=header.planning | {"error": frame.error, "baseline": frame.baseline},
        )
        checksum = _CRC.unpack(data[-4:])[0]
        tail = replace(tail, end=tail.end + length, sequence=frame.sequence, checksum=checksum)
    if _frame_follows(file, size, tail):
        raise IndexFileError(
            f"damaged: the frame {tail.sequence + 1} of the journal does not match its checksum, and others follow"
        )
    return header, ids, tail


def is_complete(file: Any, at: int, size: int, frame: Frame, widths: Iterable[tuple[int, int]]) -> bool:
    """Whether the body of a frame that begins at `at` in a file of `size` bytes is all there."""
    length = frame.size(widths)
    return length <= size - at and _body_checksum(file, at, length) == frame.body


def _opened(data: bytes, start: int, base: int) -> Tail:
    if len(data) != JOURNAL_HEADER or data[:8] != MAGIC or _CRC.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
        raise IndexFileError("truncated or damaged: no journal follows the sections")
    _, version, reserved, salt, signed, zeros = _JOURNAL.unpack(data[:-4])
    if version != VERSION:
        raise IndexFileError(f"journal version must be {VERSION}, got {version}: a newer tqann wrote it")
    if reserved or any(zeros) or signed != base:
        raise IndexFileError("damaged: the journal is not that of this file")
    return Tail(start, start + JOURNAL_HEADER, salt, 0, _CRC.unpack(data[-4:])[0])


def _check(frame: Frame, tail: Tail, header: Header) -> None:
    """Refuse what no sync can have written after the state in `header`."""
    rules = {
        "sequence": frame.sequence == tail.sequence + 1,
        "previous": frame.previous == tail.checksum,
        "ntotal": frame.ntotal <= _INT64_MAX,
        "low": frame.low <= header.ntotal,
        "moved": frame.moved <= frame.low,
        "next_id": max(header.next_id, frame.ntotal) <= frame.next_id <= _INT64_MAX + 1,
        "factor": (frame.factor > 0) == (header.refine_factor is not None) and frame.factor <= _INT64_MAX,
    }
    for name, kept in rules.items():
        if not kept:
            raise IndexFileError(
                f"damaged: {name} of the frame {tail.sequence + 1} of the journal cannot be {getattr(frame, name)}"
            )


def _body_checksum(file: Any, at: int, length: int) -> int:
    file.seek(at + FRAME_HEADER)
    checksum, left = 0, length - FRAME_HEADER
    while left > 0:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if not chunk:
            return -1
        checksum = zlib.crc32(chunk, checksum)
        left -= len(chunk)
    return checksum


def _apply(
    file: Any,
    at: int,
    frame: Frame,
    storages: Sequence[CodeStorage],
    ids: np.ndarray | None,
    widths: list[tuple[int, int]],
) -> np.ndarray | None:
    sizes = frame.sizes(widths)
    offsets = [at + FRAME_HEADER]
    for size in sizes:
        offsets.append(offsets[-1] + size)
    if any(read_at(file, offsets[-1], aligned(offsets[-1]) - offsets[-1])):
        raise IndexFileError("damaged: bytes between frames of the journal are not zero")
    positions = np.frombuffer(read_at(file, offsets[0], sizes[0]), dtype="<i8")
    increasing = (positions[1:] > positions[:-1]).all()  # differences could overflow
    if len(positions) and (positions[0] < 0 or positions[-1] >= frame.low or not increasing):
        raise IndexFileError(f"positions of a frame must increase from 0 to low - 1 = {frame.low - 1}")
    for number, storage in enumerate(storages):
        code_size, n_scalars = widths[number]
        scalars = np.frombuffer(read_at(file, offsets[2 + number], sizes[2 + number]), dtype="<f4")
        storage.n = frame.low
        storage.reserve(frame.ntotal)
        file.seek(offsets[2 + len(storages) + number])
        _fill(file, frame, storage, positions, scalars.reshape(frame.rows, n_scalars), code_size)
        storage.n = frame.ntotal
    if not frame.stored_ids:
        if ids is not None:
            raise IndexFileError("a frame of the journal has no ids, but the state before it has")
        return None
    stored = np.frombuffer(read_at(file, offsets[1], sizes[1]), dtype="<i8")
    kept = np.arange(frame.low, dtype=np.int64) if ids is None else ids
    if frame.ntotal > len(kept) or not kept.flags.writeable:
        ids = np.empty(grown(len(kept), frame.ntotal), dtype=np.int64)
        ids[: frame.low] = kept[: frame.low]
    else:
        ids = kept
    ids[positions] = stored[: frame.moved]
    ids[frame.low : frame.ntotal] = stored[frame.moved :]
    return ids


def _fill(
    file: Any, frame: Frame, storage: CodeStorage, positions: np.ndarray, scalars: np.ndarray, code_size: int
) -> None:
    step = max(16, _CHUNK_BYTES // code_size)
    first = 0
    while first < frame.rows:
        # Moved rows and new ones go different ways, so no chunk holds both.
        last = min(first + step, frame.moved if first < frame.moved else frame.rows)
        data = file.read((last - first) * code_size)
        codes = np.frombuffer(data, dtype=np.uint8).reshape(last - first, code_size)
        if first < frame.moved:
            storage.put(positions[first:last], codes, scalars[first:last])
        else:
            storage.write(frame.low + first - frame.moved, codes, scalars[first:last])
        first = last


def _frame_follows(file: Any, size: int, tail: Tail) -> bool:
    """Whether a frame later than the last one of `tail` begins behind it, past the first 64 bytes."""
    at = tail.end + 64
    while at < size:
        chunk = read_at(file, at, _CHUNK_BYTES + FRAME_HEADER)
        found = chunk.find(FRAME_MAGIC + tail.salt)
        while 0 <= found < _CHUNK_BYTES:
            frame = None if found % 64 else parse_frame(chunk[found : found + FRAME_HEADER], tail.salt)
            if frame is not None and frame.sequence > tail.sequence:
                return True
            found = chunk.find(FRAME_MAGIC + tail.salt, found + 1)
        at += _CHUNK_BYTES
    return False
