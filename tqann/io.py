"""Reading and writing indexes: files replaced atomically, streamed, and verified on the way in."""

from __future__ import annotations

import io
import math
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tqcore.plan import Plan

from .collection import Collection
from .format import Header, IndexFileError, pack_header, parse_header
from .id_map import IdMap
from .index import TurboQuantIndex
from .planning import Planner
from .storage import CodeStorage

__all__ = ["from_bytes", "read_index", "to_bytes", "write_index"]

_CHUNK_BYTES = 1 << 22


def write_index(index: TurboQuantIndex, path: str | os.PathLike[str]) -> None:
    """Write `index` to `path` so that the file there is at any moment the old one or the new one, whole.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name last. After an
    error (OSError) the temporary file is gone and the old file as it was.
    """
    if not isinstance(index, TurboQuantIndex):
        raise TypeError(f"index must be a TurboQuantIndex, got {type(index).__name__}")
    target = os.path.realpath(os.fsdecode(path))
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".tqann-{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            if os.path.exists(target):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            _write(index, _Descriptor(descriptor))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def read_index(path: str | os.PathLike[str], *, mmap: bool = False, verify: bool = False) -> TurboQuantIndex:
    """Read an index that `write_index` wrote.

    Parameters
    ----------
    path : path-like
    mmap : bool
        Map the file instead of reading it: opening takes no time and searching reads what it needs. The
        header's checksum and all sizes are checked, the checksums of the data are not. The first change to
        the index copies it into memory; the file never changes. It must not be truncated while it is mapped
        (replacing it by `write_index` is safe).
    verify : bool
        With `mmap`, check the data as well, which reads the file once. Without it that is always done.

    Raises
    ------
    IndexFileError
        For a file that is truncated, damaged, of another kind or of an unknown version.
    OSError
        Where the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if mmap:
            return _map(file, size, verify)
        return _read(file, size)


def to_bytes(index: TurboQuantIndex) -> bytes:
    """Return the index file as bytes."""
    buffer = io.BytesIO()
    _write(index, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> TurboQuantIndex:
    """Return the index that the bytes of an index file hold; IndexFileError as in `read_index`."""
    return _read(io.BytesIO(data), len(data))


class _Descriptor:
    """The two methods that `_write` needs, over a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def seek(self, offset: int) -> None:
        os.lseek(self._descriptor, offset, os.SEEK_SET)

    def write(self, data: Any) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


def _write(index: TurboQuantIndex, file: Any) -> None:
    index = index.to("cpu")
    storage, ids = index._vectors.storage, index._vectors.id_map.stored
    plan, planner = index.quantizer.plan, index._planner
    names = (["plan"] if plan else []) + ["codes", "scalars"] + (["ids"] if ids is not None else [])
    checksums = dict.fromkeys(names, 0)
    header = Header(
        index.quantizer.with_plan(None) if plan else index.quantizer,
        plan.describe() if plan else None,
        {"mode": planner.mode, "error": planner.error, "baseline": planner.baseline},
        index.metric,
        storage.n,
        index._vectors.id_map.next_id,
        checksums,
    )
    end = len(pack_header(header))
    file.write(bytes(end))
    arrays = plan.arrays().values() if plan else ()
    data = {
        "plan": (np.ascontiguousarray(array, dtype="<f4") for array in arrays),
        "codes": _code_chunks(storage),
        "scalars": _scalar_chunks(storage),
        "ids": iter((ids,)),
    }
    for name, (offset, size) in header.sections(end).items():
        file.write(bytes(offset - end))
        checksum = 0
        for chunk in data[name] if size else ():
            file.write(chunk)
            checksum = zlib.crc32(chunk, checksum)
        checksums[name] = checksum
        end = offset + size
    # The header comes last: before it is written the file does not even begin like an index.
    file.seek(0)
    file.write(pack_header(header))


def _chunk_rows(code_size: int) -> int:
    return max(16, _CHUNK_BYTES // code_size // 16 * 16)


def _code_chunks(storage: CodeStorage) -> Iterator[np.ndarray]:
    step = _chunk_rows(storage.code_size)
    for start in range(0, storage.n, step):
        yield storage.rows(slice(start, min(start + step, storage.n)))


def _scalar_chunks(storage: CodeStorage) -> Iterator[np.ndarray]:
    for column in storage.scalars:
        yield np.ascontiguousarray(column[: storage.n], dtype="<f4")


def _read(file: Any, size: int) -> TurboQuantIndex:
    header, places = parse_header(file, size)
    n, n_scalars = header.ntotal, header.quantizer.n_scalars
    storage = CodeStorage(header.code_size, n_scalars)
    storage.reserve(n)
    end = file.tell()
    sections = {}
    for name, (offset, length) in places.items():
        _check_padding(_exactly(file, offset - end))
        if name == "codes":
            checksum = _read_codes(file, storage, n)
        else:
            sections[name] = _exactly(file, length)
            checksum = zlib.crc32(sections[name])
        _compare(name, checksum, header)
        end = offset + length
    storage.scalars[:, :n] = np.frombuffer(sections["scalars"], dtype="<f4").reshape(n_scalars, n)
    storage.n = n
    ids = np.frombuffer(sections["ids"], dtype="<i8") if "ids" in sections else None
    return _checked(header, storage, ids, np.frombuffer(sections.get("plan", b""), dtype="<f4"))


def _read_codes(file: Any, storage: CodeStorage, n: int) -> int:
    step, checksum = _chunk_rows(storage.code_size), 0
    for start in range(0, n, step):
        rows = min(step, n - start)
        data = _exactly(file, rows * storage.code_size)
        checksum = zlib.crc32(data, checksum)
        storage.write(start, np.frombuffer(data, dtype=np.uint8).reshape(rows, -1))
    return checksum


def _map(file: Any, size: int, verify: bool) -> TurboQuantIndex:
    header, places = parse_header(file, size)
    end = file.tell()
    data = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
    parts = {name: data[offset : offset + length] for name, (offset, length) in places.items()}
    n, n_scalars = header.ntotal, header.quantizer.n_scalars
    storage = CodeStorage(
        header.code_size,
        n_scalars,
        parts["codes"].reshape(n, header.code_size),
        parts["scalars"].view("<f4").reshape(n_scalars, n),
    )
    plan = parts["plan"].view("<f4") if "plan" in parts else np.zeros(0, np.float32)
    ids = parts["ids"].view("<i8") if "ids" in parts else None
    if not verify:
        return _assembled(header, storage, ids, plan)
    for name, (offset, length) in places.items():
        _check_padding(data[end:offset])
        _compare(name, zlib.crc32(parts[name]), header)
        end = offset + length
    return _checked(header, storage, ids, plan)


def _checked(
    header: Header, storage: CodeStorage, ids: np.ndarray | None, plan: np.ndarray
) -> TurboQuantIndex:
    if not np.isfinite(plan).all():
        raise IndexFileError("plan must be finite, got NaN or infinity")
    if not np.isfinite(storage.scalars[:, : storage.n]).all():
        raise IndexFileError("scalars must be finite, got NaN or infinity")
    if ids is not None:
        ordered = np.sort(ids)
        if len(ids) and (
            ordered[0] < 0 or ordered[-1] >= header.next_id or (ordered[1:] == ordered[:-1]).any()
        ):
            raise IndexFileError(
                f"ids must be unique and from 0 to next_id - 1 = {header.next_id - 1}, but some are not"
            )
    return _assembled(header, storage, ids, plan)


def _assembled(
    header: Header, storage: CodeStorage, ids: np.ndarray | None, plan: np.ndarray
) -> TurboQuantIndex:
    quantizer = header.quantizer
    if header.plan is not None:
        arrays, first = {}, 0
        for name, shape in header.plan_shapes.items():
            last = first + math.prod(shape)
            arrays[name], first = plan[first:last].reshape(shape), last
        described = Plan.from_description(header.plan, quantizer.seed, quantizer.memory, arrays)
        quantizer = quantizer.with_plan(described)
    vectors = Collection(quantizer, storage, IdMap(storage.n, ids, header.next_id))
    return TurboQuantIndex._from_collection(vectors, header.metric, Planner(**header.planning))


def _exactly(file: Any, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise IndexFileError(f"truncated: {length} bytes expected, {len(data)} left")
    return data


def _check_padding(padding: bytes | np.ndarray) -> None:
    if any(padding):
        raise IndexFileError("damaged: bytes between sections are not zero")


def _compare(name: str, checksum: int, header: Header) -> None:
    if checksum != header.checksums[name]:
        raise IndexFileError(f"damaged: the checksum of the section {name} does not match")


def _sync_folder(folder: str) -> None:
    if os.name == "nt":  # Windows cannot open a folder for this
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
