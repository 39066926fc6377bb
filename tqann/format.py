r"""The index file, version 1: what its bytes mean, and what a header must pass before anything is allocated.

All integers are little-endian.

    offset  bytes
    0       8      magic, b"\x93TQANN\r\n"
    8       4      format version, uint32
    12      4      length h of the JSON header, uint32
    16      4      CRC-32 of bytes 0 to 15 and of the JSON header, uint32
    20      4      zero
    24      h      JSON header, ASCII: quantizer (the configuration of the codes), metric, ntotal, next_id,
    checksums -              sections, each starting at the next multiple of 64 after zero bytes; the last one
    ends the file

Sections: codes, uint8 [ntotal, code_size]; scalars, float32 [n_scalars, ntotal]; ids, int64 [ntotal], present
only where some id is not its position. `checksums` holds the CRC-32 of each section present, as eight
hexadecimal digits.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from tqcore.quantizer import Quantizer

__all__ = ["Header", "IndexFileError", "pack_header", "parse_header", "quantizer_options"]

MAGIC = b"\x93TQANN\r\n"
VERSION = 1
MAX_D = 65536
_PREFIX = struct.Struct("<8sIIII")
_MAX_HEADER = 1 << 20
_ALIGN = 64
_INT64_MAX = 2**63 - 1


class IndexFileError(ValueError):
    """The file is not an index of this library, or it is truncated or damaged."""


def quantizer_options(metric: str) -> dict[str, bool]:
    """Return what a metric asks of the quantizer: l2 stores squared norms, cosine normalises."""
    return {"store_norm": metric == "l2", "normalize": metric == "cosine"}


@dataclass(frozen=True)
class Header:
    """Everything in an index file but its sections; `checksums` maps their names to CRC-32."""

    quantizer: Quantizer
    metric: str
    ntotal: int
    next_id: int
    checksums: dict[str, int]

    def sections(self, end: int) -> dict[str, tuple[int, int]]:
        """Return name -> (offset, bytes) of each section in file order, for a header that ends at `end`."""
        sizes = {
            "codes": self.ntotal * self.quantizer.code_size,
            "scalars": self.ntotal * self.quantizer.n_scalars * 4,
            "ids": self.ntotal * 8,
        }
        places = {}
        for name in self.checksums:
            offset = -(-end // _ALIGN) * _ALIGN
            places[name] = (offset, sizes[name])
            end = offset + sizes[name]
        return places


def pack_header(header: Header) -> bytes:
    """Return the prefix and the JSON header; its length does not depend on the values of the checksums."""
    fields = {
        "quantizer": header.quantizer.config(),
        "metric": header.metric,
        "ntotal": header.ntotal,
        "next_id": header.next_id,
        "checksums": {name: f"{value:08x}" for name, value in header.checksums.items()},
    }
    text = json.dumps(fields, allow_nan=False).encode("ascii")
    start = struct.pack("<8sII", MAGIC, VERSION, len(text))
    return start + struct.pack("<II", zlib.crc32(text, zlib.crc32(start)), 0) + text


def parse_header(file: Any, size: int) -> tuple[Header, dict[str, tuple[int, int]]]:
    """Return the header of a binary file of `size` bytes, and name -> (offset, bytes) of the sections.

    Raises IndexFileError for whatever version 1 does not allow, a size that does not match among it.
    """
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or prefix[:8] != MAGIC:
        raise IndexFileError(f"not an index file: it begins with {prefix[:8]!r}, and an index with {MAGIC!r}")
    _, version, length, checksum, reserved = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise IndexFileError(
            f"format version must be {VERSION}, got {version}: a newer tqann wrote it, or it is damaged"
        )
    if reserved or length > min(_MAX_HEADER, size - _PREFIX.size):
        raise IndexFileError(f"truncated or damaged: a header of {length} bytes in a file of {size} bytes")
    text = file.read(length)
    if len(text) != length or zlib.crc32(text, zlib.crc32(prefix[:16])) != checksum:
        raise IndexFileError("damaged: the checksum of the header does not match")
    header = _validated(text)
    places = header.sections(_PREFIX.size + length)
    end = sum(list(places.values())[-1])
    if size != end:
        raise IndexFileError(f"truncated or damaged: the header describes {end} bytes, the file has {size}")
    return header, places


def _validated(text: bytes) -> Header:
    try:
        fields = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise IndexFileError(f"header is not JSON: {error}") from error
    _require(isinstance(fields, dict), "header must be an object", fields)
    names = {"quantizer", "metric", "ntotal", "next_id", "checksums"}
    _require(fields.keys() == names, f"header fields must be {sorted(names)}", sorted(fields))
    metric, ntotal, next_id = fields["metric"], fields["ntotal"], fields["next_id"]
    _require(metric in ("l2", "ip", "cosine"), "metric must be l2, ip or cosine", metric)
    _require(type(ntotal) is int and 0 <= ntotal <= _INT64_MAX, "ntotal must be an integer >= 0", ntotal)
    _require(
        type(next_id) is int and 0 <= next_id <= _INT64_MAX + 1, "next_id must be an integer >= 0", next_id
    )
    _require(next_id >= ntotal, f"next_id must be at least ntotal, {ntotal}", next_id)
    return Header(
        _quantizer(fields["quantizer"], metric), metric, ntotal, next_id, _checksums(fields["checksums"])
    )


def _quantizer(config: Any, metric: str) -> Quantizer:
    _require(isinstance(config, dict), "quantizer must be an object", config)
    d = config.get("d")
    _require(type(d) is int and 8 <= d <= MAX_D, f"quantizer.d must be an integer from 8 to {MAX_D}", d)
    for name, value in quantizer_options(metric).items():
        _require(
            config.get(name) is value, f"quantizer.{name} must be {value} for {metric}", config.get(name)
        )
    try:
        quantizer = Quantizer.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise IndexFileError(f"quantizer is not one this version knows: {error}") from error
    # Written out once more it must be the same, so that no unknown or mistyped field passes unseen.
    same = json.dumps(quantizer.config(), sort_keys=True) == json.dumps(config, sort_keys=True)
    _require(same, f"quantizer must be as written, {quantizer.config()}", config)
    return quantizer


def _checksums(fields: Any) -> dict[str, int]:
    _require(isinstance(fields, dict), "checksums must be an object", fields)
    _require(
        list(fields) in (["codes", "scalars"], ["codes", "scalars", "ids"]), "unknown sections", list(fields)
    )
    for name, text in fields.items():
        valid = isinstance(text, str) and len(text) == 8 and all(c in "0123456789abcdef" for c in text)
        _require(valid, f"checksums.{name} must be eight hexadecimal digits", text)
    return {name: int(text, 16) for name, text in fields.items()}


def _require(condition: bool, rule: str, got: Any) -> None:
    if not condition:
        raise IndexFileError(f"{rule}, got {got!r:.200}")
