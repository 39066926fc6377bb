"""Reading and writing indexes: files replaced atomically, streamed, and verified on the way in."""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tqcore.plan import Plan
from tqcore.quantizer import Quantizer

from .base import IndexBase
from .collection import Collection
from .files import named_errors, replace_file, writing
from .format import (
    PREFIXES,
    Header,
    IndexFileError,
    StoredCode,
    aligned,
    pack_header,
    parse_header,
    section_names,
)
from .guard import reading
from .id_map import IdMap
from .index import TurboQuantIndex
from .journal import Tail, apply_journal, pack_journal_header, read_at
from .planning import Planner
from .refinement import PairedStorage, RefinedCollection
from .storage import CodeStorage
from .sync import attach

__all__ = ["from_bytes", "read_index", "to_bytes", "write_index", "write_with_journal"]

_CHUNK_BYTES = 1 << 22


def write_index(index: TurboQuantIndex, path: str | os.PathLike[str]) -> None:
    """Write `index` to `path` so that the file there is at any moment the old one or the new one, whole.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name last. After an
    error (OSError) the temporary file is gone and the old file as it was.
    """
    if not isinstance(index, TurboQuantIndex):
        raise TypeError(f"index must be a TurboQuantIndex, got {type(index).__name__}")
    target = os.path.realpath(os.fsdecode(path))
    with named_errors(target), writing(target) as alone:
        if index._attached is not None and index._attached.path == target:
            index._attached = None  # it is this file no longer
        replace_file(target, lambda output: _write(index, output), alone)


def read_index(path: str | os.PathLike[str], *, mmap: bool = False, verify: bool = False) -> TurboQuantIndex:
    """Read an index that `write_index` or `TurboQuantIndex.sync` wrote, the latter as of its last complete sync.

    Parameters
    ----------
    path : path-like
    mmap : bool
        Map the file instead of reading it: opening takes no time and searching reads what it needs. The
        header's checksum and all sizes are checked, the checksums of the data are not. The first change to
        the index copies it into memory, and so does a journal that holds changes; no change to the index reaches the
        file but by `sync`. It must not be truncated while it is mapped (replacing it by `write_index` is safe).
    verify : bool
        With `mmap`, check the data as well, which reads the file once. Without it that is always done.

    Raises
    ------
    IndexFileError
        For a file that is truncated, damaged, of another kind or of an unknown version.
    OSError
        Where the file cannot be read.
    """
    target = os.path.realpath(os.fsdecode(path))
    with open(target, "rb") as file:
        status = os.fstat(file.fileno())
        contents = (
            _map_sections(file, status.st_size, verify) if mmap else _read_sections(file, status.st_size)
        )
        index, tail = _restored(file, status.st_size, contents, verify or not mmap)
    if tail is not None:
        attach(index, target, status, tail)
    return index


def to_bytes(index: TurboQuantIndex) -> bytes:
    """Return the index file as bytes."""
    buffer = io.BytesIO()
    _write(index, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> TurboQuantIndex:
    """Return the index that the bytes of an index file hold; IndexFileError as in `read_index`."""
    return _read(io.BytesIO(data), len(data))


def write_with_journal(index: IndexBase, file: Any, salt: bytes) -> Tail:
    """Write an index file with an empty journal, which has `salt`, to a binary file, and return where that ends."""
    header, end = _write(index, file, version=2)
    start = aligned(end)
    journal = pack_journal_header(salt, int.from_bytes(header[16:20], "little"))
    file.seek(end)
    file.write(bytes(start - end) + journal)
    return Tail(start, start + len(journal), salt, 0, int.from_bytes(journal[-4:], "little"))


@reading
def _write(index: IndexBase, file: Any, version: int = 1) -> tuple[bytes, int]:
    """Write header and sections; the header, and where the sections end, are returned."""
    index = index.to("cpu")
    parts, ids = index._vectors.parts(), index._vectors.id_map.stored
    planner = index._planner
    names = section_names(quantizer.plan is not None for quantizer, _ in parts)
    checksums = dict.fromkeys(names + (["ids"] if ids is not None else []), 0)
    header = Header(
        tuple(_described(quantizer) for quantizer, _ in parts),
        {"mode": planner.mode, "error": planner.error, "baseline": planner.baseline},
        index.metric,
        index.ntotal,
        index._vectors.id_map.next_id,
        checksums,
        index.refine_factor,
        version,
    )
    end = len(pack_header(header))
    file.write(bytes(end))
    data: dict[str, Iterator[Any]] = {"ids": iter((ids,))}
    for prefix, (quantizer, storage) in zip(PREFIXES, parts, strict=False):
        data[prefix + "plan"] = _plan_arrays(quantizer)
        data[prefix + "codes"] = _code_chunks(storage)
        data[prefix + "scalars"] = _scalar_chunks(storage)
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
    file.write(packed := pack_header(header))
    return packed, end


def _described(quantizer: Quantizer) -> StoredCode:
    plan = quantizer.plan
    return StoredCode(quantizer.with_plan(None), plan.describe()) if plan else StoredCode(quantizer, None)


def _plan_arrays(quantizer: Quantizer) -> Iterator[np.ndarray]:
    for array in quantizer.plan.arrays().values() if quantizer.plan else ():
        yield np.ascontiguousarray(array, dtype="<f4")


def _chunk_rows(code_size: int) -> int:
    return max(16, _CHUNK_BYTES // code_size // 16 * 16)


def _code_chunks(storage: CodeStorage) -> Iterator[np.ndarray]:
    step = _chunk_rows(storage.code_size)
    for start in range(0, storage.n, step):
        yield storage.rows(slice(start, min(start + step, storage.n)))


def _scalar_chunks(storage: CodeStorage) -> Iterator[np.ndarray]:
    for column in storage.scalars:
        yield np.ascontiguousarray(column[: storage.n], dtype="<f4")


@dataclass(frozen=True)
class _Contents:
    """What the sections of a file hold; `end` is where the last one ends."""

    header: Header
    storages: list[CodeStorage]
    ids: np.ndarray | None
    plans: list[np.ndarray]
    end: int


def _read(file: Any, size: int) -> TurboQuantIndex:
    return _restored(file, size, _read_sections(file, size), True)[0]


def _read_sections(file: Any, size: int) -> _Contents:
    header, places = parse_header(file, size)
    n, storages = header.ntotal, {}
    for prefix, code in zip(PREFIXES, header.codes, strict=False):
        storages[prefix + "codes"] = storage = CodeStorage(
            code.code_size, code.quantizer.n_scalars, code.head_size
        )
        storage.reserve(n)
    end = file.tell()
    sections = {}
    for name, (offset, length) in places.items():
        _check_padding(_exactly(file, offset - end))
        if name in storages:
            checksum = _read_codes(file, storages[name], n)
        else:
            sections[name] = _exactly(file, length)
            checksum = zlib.crc32(sections[name])
        _compare(name, checksum, header)
        end = offset + length
    for prefix, storage in zip(PREFIXES, storages.values(), strict=False):
        scalars = np.frombuffer(sections[prefix + "scalars"], dtype="<f4")
        storage.scalars[:, :n] = scalars.reshape(-1, n) if n else 0
        storage.n = n
    ids = np.frombuffer(sections["ids"], dtype="<i8") if "ids" in sections else None
    plans = [np.frombuffer(sections.get(prefix + "plan", b""), dtype="<f4") for prefix in PREFIXES]
    return _Contents(header, list(storages.values()), ids, plans, end)


def _read_codes(file: Any, storage: CodeStorage, n: int) -> int:
    step, checksum = _chunk_rows(storage.code_size), 0
    for start in range(0, n, step):
        rows = min(step, n - start)
        data = _exactly(file, rows * storage.code_size)
        checksum = zlib.crc32(data, checksum)
        storage.write(start, np.frombuffer(data, dtype=np.uint8).reshape(rows, -1))
    return checksum


def _map_sections(file: Any, size: int, verify: bool) -> _Contents:
    header, places = parse_header(file, size)
    end = file.tell()
    data = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
    parts = {name: data[offset : offset + length] for name, (offset, length) in places.items()}
    storages = [
        CodeStorage(
            code.code_size,
            code.quantizer.n_scalars,
            code.head_size,
            parts[prefix + "codes"].reshape(header.ntotal, code.code_size),
            parts[prefix + "scalars"].view("<f4").reshape(code.quantizer.n_scalars, header.ntotal),
        )
        for prefix, code in zip(PREFIXES, header.codes, strict=False)
    ]
    plans = [parts.get(prefix + "plan", data[:0]).view("<f4") for prefix in PREFIXES]
    ids = parts["ids"].view("<i8") if "ids" in parts else None
    for name, (offset, length) in places.items():
        if verify:
            _check_padding(data[end:offset])
            _compare(name, zlib.crc32(parts[name]), header)
        end = offset + length
    return _Contents(header, storages, ids, plans, end)


def _restored(file: Any, size: int, contents: _Contents, verify: bool) -> tuple[TurboQuantIndex, Tail | None]:
    """The index of sections and journal, and how far the journal goes; None for a file without one."""
    tail = None
    if contents.header.version == 2:
        start = aligned(contents.end)
        _check_padding(read_at(file, contents.end, start - contents.end))
        header, ids, tail = apply_journal(file, start, size, contents.header, contents.storages, contents.ids)
        verify = verify or tail.sequence > 0
        contents = replace(contents, header=header, ids=ids)
    if verify:
        _check_values(contents)
    return _assembled(contents), tail


def _check_values(contents: _Contents) -> None:
    if not all(np.isfinite(plan).all() for plan in contents.plans):
        raise IndexFileError("plan must be finite, got NaN or infinity")
    if not all(np.isfinite(storage.scalars[:, : storage.n]).all() for storage in contents.storages):
        raise IndexFileError("scalars must be finite, got NaN or infinity")
    header, ids = contents.header, contents.ids
    if ids is not None:
        ordered = np.sort(ids[: header.ntotal])
        if len(ordered) and (
            ordered[0] < 0 or ordered[-1] >= header.next_id or (ordered[1:] == ordered[:-1]).any()
        ):
            raise IndexFileError(
                f"ids must be unique and from 0 to next_id - 1 = {header.next_id - 1}, but some are not"
            )


def _assembled(contents: _Contents) -> TurboQuantIndex:
    header, storages = contents.header, contents.storages
    quantizers = [_planned(code, plan) for code, plan in zip(header.codes, contents.plans, strict=False)]
    id_map = IdMap(header.ntotal, contents.ids, header.next_id)
    if header.refine_factor is None:
        vectors = Collection(quantizers[0], storages[0], id_map)
    else:
        vectors = RefinedCollection(
            quantizers[0], quantizers[1], PairedStorage(*storages), id_map, header.refine_factor
        )
    return TurboQuantIndex._from_collection(vectors, header.metric, Planner(**header.planning))


def _planned(code: StoredCode, plan: np.ndarray) -> Quantizer:
    quantizer = code.quantizer
    if code.plan is None:
        return quantizer
    arrays, first = {}, 0
    for name, shape in code.plan_shapes.items():
        last = first + math.prod(shape)
        arrays[name], first = plan[first:last].reshape(shape), last
    return quantizer.with_plan(Plan.from_description(code.plan, quantizer.seed, quantizer.memory, arrays))


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
