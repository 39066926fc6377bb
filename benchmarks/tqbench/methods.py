"""The methods that `tq bench ann` compares, as data; importing this costs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import BenchError

__all__ = ["CHAIN_BITS", "DEFAULT_BITS", "EXACT", "METHODS", "ON_REQUEST", "Case", "Method", "expand"]

CHAIN_BITS = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8)
DEFAULT_BITS = (1, 2, 3, 4)
_WHOLE = (1, 2, 3, 4, 5, 6, 7, 8)
_TQMSE = (1, 2, 3, 4, 8)
EXACT = 32.0


@dataclass(frozen=True)
class Method:
    """One way to index vectors.

    Attributes
    ----------
    name, label : str
        Key for the command line, and name in tables.
    family : str
        Colour group in plots; "tqann" is ours.
    adapter : str
        "module:class" below `tqbench.adapters`.
    bits : tuple of float
        Bits per dimension that it offers, scalars not counted.
    options : dict
        Arguments of the adapter.
    trains_on : str
        "nothing", "base" or "held_out".
    slow : bool
        Left out by `--quick`.
    environment : dict
        Variables that the library reads when its process starts; for adapters with processes of their own.
    """

    name: str
    label: str
    family: str
    adapter: str
    bits: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    trains_on: str = "nothing"
    slow: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A method at one bit width."""

    method: Method
    bits: float

    @property
    def key(self) -> str:
        """Unique name within a run."""
        return f"{self.method.name}@{self.bits:g}"


def _ours(
    name: str, label: str, bits: tuple[float, ...], trains_on: str = "nothing", **options: Any
) -> Method:
    return Method(name, label, "tqann", "ours:OurIndex", bits, options, trains_on)


def _faiss(
    name: str,
    label: str,
    family: str,
    kind: str,
    bits: tuple[float, ...],
    trains_on: str = "nothing",
    slow: bool = False,
    rotate: bool = False,
) -> Method:
    options = {"kind": kind, "rotate": rotate}
    return Method(name, label, family, "faiss_indexes:FaissIndex", bits, options, trains_on, slow)


_ALL = (
    _ours("chain", "tqann chain", CHAIN_BITS, code="chain", memory=2),
    # For vectors of length 1 alone, under the cosine metric.
    _ours("chain-unit", "tqann chain, no scale", CHAIN_BITS, code="chain", memory=2, scale="none"),
    _ours(
        "chain-unit-m3", "tqann chain, memory 3, no scale", CHAIN_BITS, code="chain", memory=3, scale="none"
    ),
    _ours("chain-m3", "tqann chain, memory 3", CHAIN_BITS, code="chain", memory=3),
    _ours("layered", "tqann layered", (3, 3.5, 4, 5, 6, 8), code="layered", memory=2),
    _ours("calibrated", "tqann calibrated", CHAIN_BITS, "base", plan="calibrated"),
    _ours("calibrated-m3", "tqann calibrated, memory 3", CHAIN_BITS, "base", plan="calibrated", memory=3),
    # One bit finds candidates, the width named orders them; bytes are those of both codes.
    _ours("refined", "tqann 1 bit, refined", (2, 3, 4, 5, 6, 8), "base", plan="calibrated", first_bits=1),
    _ours("mse-scale", "tqann mse + scale", _WHOLE, code="mse", scale="unbiased"),
    _ours("mse", "tqann mse (paper)", _WHOLE, code="mse", scale="norm"),
    _ours("prod", "tqann prod (paper, orthogonal)", _WHOLE, code="prod", sketch="orthogonal"),
    _ours("prod-gaussian", "tqann prod (paper, Gaussian)", _WHOLE, code="prod", sketch="gaussian"),
    _faiss("flat", "FAISS Flat", "exact", "flat", (EXACT,)),
    _faiss("sq", "FAISS SQ, no rotation", "scalar", "sq", (4, 6, 8), "base"),
    # Rotation is part of these four methods; FAISS leaves it to the user as "RR," before the index.
    _faiss("sqtqmse", "FAISS RR,SQtqmse", "scalar", "sqtqmse", _TQMSE, rotate=True),
    _faiss("sqtq", "FAISS RR,SQtq", "scalar", "sqtq", (2, 3, 4, 5), rotate=True),
    _faiss("eden", "FAISS RR,EDEN", "scalar", "eden", _WHOLE, "base", rotate=True),
    _faiss("rabitq", "FAISS RR,RaBitQ", "rabitq", "rabitq", _WHOLE, "base", rotate=True),
    _faiss("rabitq-fs", "FAISS RR,RaBitQFastScan", "rabitq", "rabitq-fs", _WHOLE, "base", rotate=True),
    _faiss("sqtqmse-raw", "FAISS SQtqmse, unrotated", "scalar", "sqtqmse", _TQMSE),
    _faiss("sqtq-raw", "FAISS SQtq, unrotated", "scalar", "sqtq", (2, 3, 4, 5)),
    _faiss("eden-raw", "FAISS EDEN, unrotated", "scalar", "eden", _WHOLE, "base"),
    _faiss("rabitq-raw", "FAISS RaBitQ, unrotated", "rabitq", "rabitq", _WHOLE, "base"),
    _faiss("rabitq-fs-raw", "FAISS RaBitQFastScan, unrotated", "rabitq", "rabitq-fs", _WHOLE, "base"),
    _faiss("pq", "FAISS PQ", "pq", "pq", CHAIN_BITS, "base", slow=True),
    _faiss("pq-held-out", "FAISS PQ, held-out training", "pq", "pq", CHAIN_BITS, "held_out", slow=True),
    _faiss("opq", "FAISS OPQ+PQ", "opq", "opq", CHAIN_BITS, "base", slow=True),
    _faiss("pq-fs", "FAISS PQFastScan", "pq-fs", "pq-fs", (0.5, 1, 2, 4), "base"),
    Method("turbovec", "turbovec", "turbovec", "rivals:TurbovecIndex", (2, 3, 4)),
    # Its 4-bit search ranks by one bit plane first, from 32,768 rows up, unless told otherwise.
    Method(
        "turbovec-full",
        "turbovec, full scan",
        "turbovec",
        "rivals:TurbovecIndex",
        (4,),
        environment={"TURBOVEC_4BIT_PLANES": "0"},
    ),
    Method("rabitqlib", "rabitqlib, one cluster", "rabitq", "rivals:RabitqlibIndex", _WHOLE),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
# Slow ones, and variants whose sibling tells more: they run when asked for.
ON_REQUEST = frozenset(
    {
        "opq",
        "pq-held-out",
        "prod-gaussian",
        "calibrated-m3",
        "chain-unit-m3",
        "refined",
        "turbovec-full",
        *(name for name in METHODS if name.endswith("-raw")),
    }
)


def expand(names: Sequence[str] = (), bits: Iterable[float] = (), quick: bool = False) -> list[list[Case]]:
    """Groups of cases to compare, one group per bit width, the exact index first.

    Parameters
    ----------
    names : iterable of str
        Methods; none means all but those that run on request only; "all" means every one.
    bits : iterable of float
        Bit widths; none means `DEFAULT_BITS`.
    quick : bool
        Leave out methods that train for long, unless they are named.

    Raises
    ------
    BenchError
        For an unknown method, and for bits that no chosen method offers.
    """
    left_out = quick and not names
    chosen = list(names) or [name for name in METHODS if name not in ON_REQUEST]
    if "all" in chosen:
        chosen = list(METHODS)
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise BenchError(f"methods must be among {', '.join(METHODS)}, got {', '.join(unknown)}")
    methods = [METHODS[name] for name in METHODS if name in chosen and not (left_out and METHODS[name].slow)]
    widths = sorted(set(bits)) or list(DEFAULT_BITS)
    groups = [[Case(m, b) for m in methods if b in m.bits] for b in [EXACT, *widths]]
    missing = [f"{b:g}" for b, group in zip(widths, groups[1:], strict=True) if not group]
    if missing and any(b != EXACT for m in methods for b in m.bits):
        raise BenchError(f"bits {', '.join(missing)} is offered by none of the chosen methods")
    return [group for group in groups if group]
