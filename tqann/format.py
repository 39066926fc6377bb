r"""The index file, versions 1 and 2: what its bytes mean, and what a header must pass before anything is allocated.

All integers are little-endian.

    offset  bytes
    0       8      magic, b"\x93TQANN\r\n"
    8       4      format version, uint32
    12      4      length h of the JSON header, uint32
    16      4      CRC-32 of bytes 0 to 15 and of the JSON header, uint32
    20      4      zero
    24      h      JSON header, ASCII: quantizer (the configuration of the codes), metric, ntotal, next_id,
    checksums -              sections, each starting at the next multiple of 64 after zero bytes; in version 1 the last
    one ends the file, in version 2 a journal follows at the next multiple of 64 (see `tqann.journal`)

Sections: plan, float32, the arrays of the calibrated plan in the order of `Plan.arrays`, present only for one;
codes, uint8 [ntotal, code_size]; scalars, float32 [n_scalars, ntotal]; ids, int64 [ntotal], present
only where some id is not its position. An index with a finer code has the header field refinement (bits, plan and
factor: its rate, its plan and the candidates for each result) and, before ids, the sections refinement_plan,
refinement_codes and refinement_scalars, which are to the finer code what plan, codes and scalars are to the first;
its quantizer differs from the first in bits and plan alone. `checksums` holds the CRC-32 of each section
present, as eight hexadecimal digits.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tqcore.config import MAX_D, ChainLayout
from tqcore.plan import Plan
from tqcore.quantizer import Quantizer

from .planning import PLANS

__all__ = [
    "PREFIXES",
    "Header",
    "IndexFileError",
    "StoredCode",
    "aligned",
    "pack_header",
    "parse_header",
    "quantizer_options",
    "section_names",
]

PREFIXES = ("", "refinement_")  # of the sections of each code

MAGIC = b"\x93TQANN\r\n"
VERSIONS = (1, 2)
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
class StoredCode:
    """One of the codes in a file: `quantizer` is without its plan, of which `plan` is the description."""

    quantizer: Quantizer
    plan: dict[str, Any] | None

    @property
    def code_size(self) -> int:
        """Bytes of a packed code."""
        if self.plan is None:
            return self.quantizer.code_size
        return sum(ChainLayout(dims, bits).code_size for dims, bits in self.plan["segments"])

    @property
    def head_size(self) -> int:
        """Bytes of a packed code that lie in blocks."""
        return self.quantizer.core.head_size if self.plan is None else self.code_size

    @property
    def plan_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays in the section of the plan, in file order."""
        return {} if self.plan is None else Plan.shapes(self.quantizer.d, self.plan)


@dataclass(frozen=True)
class Header:
    """Everything in an index file but its sections.

    `codes` are the first code and, if there is one, the finer one, which `refine_factor` belongs to; `checksums` maps
    section names to CRC-32. A journal follows for `version` 2.
    """

    codes: tuple[StoredCode, ...]
    planning: dict[str, Any]
    metric: str
    ntotal: int
    next_id: int
    checksums: dict[str, int]
    refine_factor: int | None = None
    version: int = 1

    def sections(self, end: int) -> dict[str, tuple[int, int]]:
        """Return name -> (offset, bytes) of each section in file order, for a header that ends at `end`."""
        sizes = {"ids": self.ntotal * 8}
        for prefix, code in zip(PREFIXES, self.codes, strict=False):
            sizes[prefix + "plan"] = 4 * sum(math.prod(shape) for shape in code.plan_shapes.values())
            sizes[prefix + "codes"] = self.ntotal * code.code_size
            sizes[prefix + "scalars"] = self.ntotal * code.quantizer.n_scalars * 4
        places = {}
        for name in self.checksums:
            offset = aligned(end)
            places[name] = (offset, sizes[name])
            end = offset + sizes[name]
        return places


def aligned(offset: int) -> int:
    """Return the next multiple of 64."""
    return -(-offset // _ALIGN) * _ALIGN


def pack_header(header: Header) -> bytes:
    """Return the prefix and the JSON header; its length does not depend on the values of the checksums."""
    first, *finer = header.codes
    fields = {
        "quantizer": first.quantizer.config() | {"plan": first.plan},
        "planning": header.planning,
        "metric": header.metric,
        "ntotal": header.ntotal,
        "next_id": header.next_id,
        "checksums": {name: f"{value:08x}" for name, value in header.checksums.items()},
    }
    for code in finer:
        fields["refinement"] = {
            "bits": code.quantizer.bits,
            "plan": code.plan,
            "factor": header.refine_factor,
        }
    text = json.dumps(fields, allow_nan=False).encode("ascii")
    start = struct.pack("<8sII", MAGIC, header.version, len(text))
    return start + struct.pack("<II", zlib.crc32(text, zlib.crc32(start)), 0) + text


def parse_header(file: Any, size: int) -> tuple[Header, dict[str, tuple[int, int]]]:
    """Return the header of a binary file of `size` bytes, and name -> (offset, bytes) of the sections.

    Raises IndexFileError for whatever its version does not allow, a size that does not match among it.
    """
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or prefix[:8] != MAGIC:
        raise IndexFileError(f"not an index file: it begins with {prefix[:8]!r}, and an index with {MAGIC!r}")
    _, version, length, checksum, reserved = _PREFIX.unpack(prefix)
    if version not in VERSIONS:
        raise IndexFileError(
            f"format version must be 1 or 2, got {version}: a newer tqann wrote it, or it is damaged"
        )
    if reserved or length > min(_MAX_HEADER, size - _PREFIX.size):
        raise IndexFileError(f"truncated or damaged: a header of {length} bytes in a file of {size} bytes")
    text = file.read(length)
    if len(text) != length or zlib.crc32(text, zlib.crc32(prefix[:16])) != checksum:
        raise IndexFileError("damaged: the checksum of the header does not match")
    header = _validated(text, version)
    places = header.sections(_PREFIX.size + length)
    end = sum(list(places.values())[-1])
    if size < end or (size > end and version == 1):
        raise IndexFileError(f"truncated or damaged: the header describes {end} bytes, the file has {size}")
    return header, places


def _validated(text: bytes, version: int) -> Header:
    try:
        fields = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise IndexFileError(f"header is not JSON: {error}") from error
    _require(isinstance(fields, dict), "header must be an object", fields)
    names = {"quantizer", "planning", "metric", "ntotal", "next_id", "checksums"}
    _require(
        fields.keys() - {"refinement"} == names, f"header fields must be {sorted(names)}", sorted(fields)
    )
    metric, ntotal, next_id = fields["metric"], fields["ntotal"], fields["next_id"]
    _require(metric in ("l2", "ip", "cosine"), "metric must be l2, ip or cosine", metric)
    _require(type(ntotal) is int and 0 <= ntotal <= _INT64_MAX, "ntotal must be an integer >= 0", ntotal)
    _require(
        type(next_id) is int and 0 <= next_id <= _INT64_MAX + 1, "next_id must be an integer >= 0", next_id
    )
    _require(next_id >= ntotal, f"next_id must be at least ntotal, {ntotal}", next_id)
    codes, factor = (_quantizer(fields["quantizer"], metric),), None
    if "refinement" in fields:
        finer, factor = _refinement(fields["refinement"], fields["quantizer"], metric)
        codes = (*codes, finer)
    checksums = _checksums(fields["checksums"], codes)
    return Header(codes, _planning(fields["planning"]), metric, ntotal, next_id, checksums, factor, version)


def _refinement(fields: Any, first: dict[str, Any], metric: str) -> tuple[StoredCode, int]:
    _require(
        isinstance(fields, dict) and fields.keys() == {"bits", "plan", "factor"}, "unknown refinement", fields
    )
    bits, factor = fields["bits"], fields["factor"]
    _require(first["code"] == "chain", "refinement needs the code chain", first["code"])
    _require(
        type(bits) is float and bits > first["bits"], f"refinement.bits must be above {first['bits']}", bits
    )
    _require(
        type(factor) is int and 1 <= factor <= _INT64_MAX, "refinement.factor must be an integer >= 1", factor
    )
    return _quantizer(first | {"bits": bits, "plan": fields["plan"]}, metric), factor


def _planning(fields: Any) -> dict[str, Any]:
    _require(
        isinstance(fields, dict) and fields.keys() == {"mode", "error", "baseline"},
        "unknown planning",
        fields,
    )
    _require(fields["mode"] in PLANS, f"planning.mode must be one of {PLANS}", fields["mode"])
    for name in ("error", "baseline"):
        value = fields[name]
        _require(
            type(value) is float and 0 <= value < math.inf, f"planning.{name} must be a number >= 0", value
        )
    return fields


def _quantizer(config: Any, metric: str) -> StoredCode:
    _require(isinstance(config, dict), "quantizer must be an object", config)
    d = config.get("d")
    _require(type(d) is int and 8 <= d <= MAX_D, f"quantizer.d must be an integer from 8 to {MAX_D}", d)
    for name, value in quantizer_options(metric).items():
        _require(
            config.get(name) is value, f"quantizer.{name} must be {value} for {metric}", config.get(name)
        )
    plan = config.get("plan")
    oblivious = config | {"plan": None}
    try:
        quantizer = Quantizer.from_config(oblivious)
        if plan is not None:
            quantizer.check_plannable()
            Plan.shapes(d, plan)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise IndexFileError(f"quantizer is not one this version knows: {error}") from error
    # Written out once more it must be the same, so that no unknown or mistyped field passes unseen.
    same = json.dumps(quantizer.config(), sort_keys=True) == json.dumps(oblivious, sort_keys=True)
    _require(same and "plan" in config, f"quantizer must be as written, {quantizer.config()}", config)
    return StoredCode(quantizer, plan)


def section_names(planned: Iterable[bool]) -> list[str]:
    """Return the sections but ids, in file order, of codes that have plans or not."""
    names = []
    for prefix, plan in zip(PREFIXES, planned, strict=False):
        names += [prefix + name for name in (["plan"] if plan else []) + ["codes", "scalars"]]
    return names


def _checksums(fields: Any, codes: tuple[StoredCode, ...]) -> dict[str, int]:
    _require(isinstance(fields, dict), "checksums must be an object", fields)
    first = section_names(code.plan is not None for code in codes)
    _require(list(fields) in (first, [*first, "ids"]), "unknown sections", list(fields))
    for name, text in fields.items():
        valid = isinstance(text, str) and len(text) == 8 and all(c in "0123456789abcdef" for c in text)
        _require(valid, f"checksums.{name} must be eight hexadecimal digits", text)
    return {name: int(text, 16) for name, text in fields.items()}


def _require(condition: bool, rule: str, got: Any) -> None:
    if not condition:
        raise IndexFileError(f"{rule}, got {got!r:.200}")
