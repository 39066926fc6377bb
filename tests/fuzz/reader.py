"""What fuzzing does with the bytes of an index file, and how it changes them: see `run.py`."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tqann import IndexFileError, TurboQuantIndex, read_index
from tqann.format import aligned, parse_header
from tqann.io import from_bytes, to_bytes
from tqann.journal import FRAME_HEADER, FRAME_MAGIC, JOURNAL_HEADER, Frame

ODD = [
    0,
    1,
    -1,
    7,
    8,
    9,
    255,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**70,
    0.5,
    1e308,
    "",
    "x",
    None,
    True,
]
ODD += [[], {}, "haar", "prod", "mse", "cosine", "ip", "gaussian", "calibrated", 65536, 4096]
_FRAME_FIELDS = struct.Struct("<8s16sQIIQQQQQdd24sI")


@np.errstate(all="ignore")  # signed scalars may be as large as float32 goes
def one_input(data: bytes, path: Path) -> str:
    """Read `data` as bytes and as a mapped file; "refused", "mapped" or "read" says how far it came.

    What opens is searched, changed and written, and everything but IndexFileError is a finding.
    """
    reached = "refused"
    path.write_bytes(data)
    with contextlib.suppress(IndexFileError):
        mapped = read_index(path, mmap=True)
        reached = "mapped"
        _search(mapped)
        if mapped.d <= 512:
            _add(mapped)
    try:
        index = from_bytes(data)
    except IndexFileError:
        return reached
    _search(index)
    if index.d <= 512 and index.ntotal < 2**62:
        again = from_bytes(to_bytes(index))
        assert to_bytes(again) == to_bytes(index)
        _change(index)
    return "read"


def _search(index: TurboQuantIndex) -> None:
    if index.d > 512:  # a rotation of d x d takes its time
        return
    distances, ids = index.search(np.ones((1, index.d), np.float32), index.ntotal + 1)
    assert distances.shape == ids.shape == (1, index.ntotal + 1)


def _change(index: TurboQuantIndex) -> None:
    ids = index.ids
    vectors = index.reconstruct_batch(ids)
    assert vectors.shape == (len(ids), index.d)
    index.remove_ids(ids[::2])
    _add(index)
    assert len(np.unique(index.ids)) == index.ntotal


def _add(index: TurboQuantIndex) -> None:
    with contextlib.suppress(ValueError):  # ids used up, or a signed plan that takes any vector out of range
        index.add(np.eye(2, index.d, dtype=np.float32))


def signed(data: bytes, rng: random.Random) -> bytes:
    """Correct the checksums of a file as far as it can be followed."""
    if len(data) < 24:
        return data
    out = bytearray(data)
    length = min(int.from_bytes(out[12:16], "little"), len(out) - 24)
    text = bytes(out[24 : 24 + length])
    out[12:16] = struct.pack("<I", length)
    _sign_header(out, text)
    try:
        header, places = parse_header(io.BytesIO(out), len(out))
    except IndexFileError as error:
        if "header describes" not in str(error) or rng.random() < 0.5:
            return bytes(out)
        out = out[: int(str(error).split("describes ")[1].split()[0])]  # cut to what the header asks for
        try:
            header, places = parse_header(io.BytesIO(out), len(out))
        except IndexFileError:
            return bytes(out)
    fields = json.loads(text)
    for name, (offset, size) in places.items():
        fields["checksums"][name] = f"{zlib.crc32(out[offset : offset + size]):08x}"
    signed_text = json.dumps(fields).encode()
    if len(signed_text) != length:
        return bytes(out)
    out[24 : 24 + length] = signed_text
    _sign_header(out, signed_text)
    if header.version == 2:
        widths = [(code.code_size, code.quantizer.n_scalars) for code in header.codes]
        _sign_journal(out, aligned(sum(list(places.values())[-1])), widths, rng)
    return bytes(out)


def _sign_header(out: bytearray, text: bytes) -> None:
    out[16:20] = struct.pack("<I", zlib.crc32(text, zlib.crc32(out[:16])))


def _sign_journal(out: bytearray, start: int, widths: list[tuple[int, int]], rng: random.Random) -> None:
    if len(out) < start + JOURNAL_HEADER:
        return
    out[start + 32 : start + 36] = out[16:20]
    checksum = zlib.crc32(out[start : start + 60])
    out[start + 60 : start + 64] = struct.pack("<I", checksum)
    at, number = start + JOURNAL_HEADER, 0
    while at + FRAME_HEADER <= len(out):
        number += 1
        values = list(_FRAME_FIELDS.unpack(out[at : at + 124]))
        if rng.random() < 0.9:
            values[:4] = [FRAME_MAGIC, bytes(out[start + 16 : start + 32]), number, checksum]
        frame = Frame(number, checksum, bool(values[4]), *values[5:10], 0.0, 0.0)
        size = frame.size(widths)
        if frame.rows < 0 or size > len(out) - at:
            size = len(out) - at
        values[13] = zlib.crc32(out[at + FRAME_HEADER : at + size])
        out[at : at + 124] = _FRAME_FIELDS.pack(*values)
        checksum = zlib.crc32(out[at : at + 124])
        out[at + 124 : at + 128] = struct.pack("<I", checksum)
        at += size


def odd_header(data: bytes, rng: random.Random) -> bytes:
    """Put an odd value into a field of the JSON header, or take the field out."""
    length = int.from_bytes(data[12:16], "little") if len(data) >= 24 else 0
    try:
        fields = json.loads(data[24 : 24 + length])
        place: Any = fields
        while True:
            name = rng.choice(list(place))
            if not isinstance(place[name], dict) or not place[name] or rng.random() < 0.1:
                break
            place = place[name]
        if rng.random() < 0.05:
            del place[name]
        else:
            place[name] = rng.choice(ODD)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError):
        return data
    text = json.dumps(fields).encode()
    start = data[:12] + struct.pack("<I", len(text)) + data[16:24] + text
    return start + bytes(-len(start) % 64) + data[aligned(24 + length) :]


def odd_frame(data: bytes, rng: random.Random) -> bytes:
    """Put an odd number into a field of a frame of the journal."""
    places = [at for at in range(0, len(data) - FRAME_HEADER, 64) if data[at : at + 8] == FRAME_MAGIC]
    if not places:
        return data
    at = rng.choice(places) + 8 * rng.randrange(3, 12)
    value = rng.choice([0, 1, 2, 3, 9, 2**31, 2**63 - 1, 2**63, 2**64 - 1, rng.randrange(40)])
    return data[:at] + struct.pack("<Q", value) + data[at + 8 :]


def variant(data: bytes) -> bytes:
    """`data` with one odd value put in by knowledge of the format, or none, and signed again; always the same one."""
    rng = random.Random(zlib.crc32(data))
    choice = rng.random()
    if choice < 0.3:
        data = odd_header(data, rng)
    elif choice < 0.5:
        data = odd_frame(data, rng)
    return signed(data, rng)


def seeds() -> dict[str, bytes]:
    """Small files of each kind of index, of both versions."""
    x = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)
    kinds: dict[str, dict[str, Any]] = {
        "l2": {},
        "ip": {"metric": "ip", "bits": 2.5},
        "cosine": {"metric": "cosine", "memory": 3},
        "mse": {"code": "mse", "rotation": "haar", "scale": "norm"},
        "prod": {"code": "prod", "sketch": "gaussian"},
        "refined": {"refine_bits": 6},
        "plan": {"plan": "calibrated", "metric": "ip"},
    }
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.tqann"
        for name, options in kinds.items():
            index = TurboQuantIndex(8, **{"bits": 4} | options)
            files[f"{name}-empty"] = to_bytes(index)
            index.add(x)
            files[name] = to_bytes(index)
            index.sync(path)
            index.add(x[:3])
            index.sync(path)
            index.remove_ids([1, 4, 11])
            index.add(x[:2])
            index.sync(path)
            index.add_with_ids(x[:1], [2**63 - 1])
            index.sync(path, compact=False)
            files[f"{name}-journal"] = path.read_bytes()
            path.unlink()
    return files
