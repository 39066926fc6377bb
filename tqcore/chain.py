"""Chain codes: the fitted tables and the compiled code they define."""

from __future__ import annotations

import zlib
from functools import cache
from importlib.resources import files

import numpy as np

from tqcore import _core
from tqcore.config import CHAIN_RATES, chain_segments

__all__ = [
    "chain_code",
    "chain_mse",
    "mixed_code",
    "mixed_mse",
    "chain_tables",
    "nibble_tables",
    "tables_fingerprint",
]


@cache
def _stored() -> dict[str, np.ndarray]:
    with files("tqcore").joinpath("tables/chain.npz").open("rb") as stream, np.load(stream) as data:
        return {key: data[key] for key in data.files}


def _key(bits: float, memory: int) -> str:
    if bits not in CHAIN_RATES:
        raise ValueError(
            f"bits must be one of {', '.join(f'{b:g}' for b in CHAIN_RATES)} for code 'chain', got {bits!r}"
        )
    if memory not in (2, 3):
        raise ValueError(f"memory must be 2 or 3, got {memory!r}")
    return f"{bits:g}_m{memory}"


def chain_tables(bits: float, memory: int) -> np.ndarray:
    """Tables of a rate: float32 [Q, memory, 16], fitted on N(0, 1) by ``tools/fit_chain.py``."""
    return _stored()[_key(bits, memory)]


def chain_mse(bits: float, memory: int) -> float:
    """Mean squared error per dimension that the stored tables reached on fresh N(0, 1) samples."""
    return float(_stored()[_key(bits, memory) + "_mse"])


@cache
def tables_fingerprint() -> str:
    """CRC-32 of all tables, eight hexadecimal digits; files carry it, since codes mean nothing without them."""
    checksum = 0
    for key in sorted(key for key in _stored() if not key.endswith("_mse")):
        checksum = zlib.crc32(_stored()[key].astype("<f4").tobytes(), zlib.crc32(key.encode(), checksum))
    return f"{checksum:08x}"


def nibble_tables(centroids: np.ndarray) -> np.ndarray:
    """A scalar code of 1, 2 or 4 bits as a chain of memory 1: float32 [Q, 1, 16] from centroids [2**bits]."""
    bits = len(centroids).bit_length() - 1
    nibbles = np.arange(16)
    phases = [centroids[(nibbles >> (bits * phase)) & (len(centroids) - 1)] for phase in range(4 // bits)]
    return np.ascontiguousarray(np.stack(phases)[:, None, :], dtype=np.float32)


def chain_code(d: int, bits: float, memory: int) -> _core.Code:
    """The compiled chain code of `d` dimensions."""
    tables = chain_tables(bits, memory)
    return _core.chain_code(d, *CHAIN_RATES[bits], tables)


def mixed_code(d: int, bits: float, memory: int) -> _core.Code:
    """The same at any number of bits: the chains of `chain_segments` side by side."""
    chains = [chain_code(dims, rate, memory) for dims, rate in chain_segments(d, bits)]
    return chains[0] if len(chains) == 1 else _core.join_codes(chains)


def mixed_mse(d: int, bits: float, memory: int) -> float:
    """Mean squared error per dimension of `mixed_code`, from those of its chains."""
    return sum(dims * chain_mse(rate, memory) for dims, rate in chain_segments(d, bits)) / d
