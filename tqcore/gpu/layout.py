"""What the search kernels know of a code and of the rows that are searched."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch

from tqcore.chain import chain_tables
from tqcore.config import CHAIN_RATES, chain_layout
from tqcore.quantizer import Quantizer

__all__ = [
    "LANES",
    "MAX_DIMS",
    "MAX_WORDS",
    "UNIT",
    "ByteTables",
    "CodeLayout",
    "DeviceRows",
    "pack_blocks",
    "unpack_blocks",
]

LANES = 32  # rows of a block
UNIT = 4  # 32-bit words of a row that lie together
_MOST_PHASES = 4
_MOST_PERIOD = 3  # products take every nibble for every phase
MAX_WORDS = 1700  # 32-bit words of a row, so that a block fits shared memory
MAX_DIMS = 16384  # so that a query in double and its candidates do


class _Code(ctypes.Structure):
    _fields_ = (
        ("dims", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("d", ctypes.c_int32),
        ("words", ctypes.c_int32),
        ("nibbles", ctypes.c_int32),
        ("phases", ctypes.c_int32),
        ("memory", ctypes.c_int32),
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("half_norm", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("n", ctypes.c_int64),
    )


class _Bytes(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_uint8 * 192),
        ("step", ctypes.c_float * 4),
        ("zero", ctypes.c_float * 4),
    )


class CodeLayout:
    """Where the nibbles and the tables of every dimension of a code lie, on a device.

    Parameters
    ----------
    quantizer : Quantizer
        Of code "chain".
    device : torch.device
        A CUDA device.

    Raises
    ------
    ValueError
        For rows of more than `MAX_WORDS` words or `MAX_DIMS` dimensions.
    """

    def __init__(self, quantizer: Quantizer, device: torch.device) -> None:
        dims, tables, self.segments = _described(quantizer)
        self.d = len(dims)
        if self.d > MAX_DIMS:
            raise ValueError(f"d must be at most {MAX_DIMS} on a CUDA device, got {self.d}")
        self.code_size = quantizer.code_size
        self.words = -(-quantizer.code_size // (4 * UNIT)) * UNIT
        if self.words > MAX_WORDS:
            raise ValueError(
                f"a row must take at most {4 * MAX_WORDS} bytes on a CUDA device, got {quantizer.code_size}"
            )
        self.dims = torch.from_numpy(dims).to(device)
        self.tables = torch.from_numpy(tables).to(device)
        # The most that one coordinate of a query can add to a score, for error bounds.
        reach = np.abs(tables).max(axis=2).sum(axis=1)
        self.reach = torch.from_numpy(reach[dims[:, 3]].astype(np.float32)).to(device)
        self.bytes = None
        ((_, rate), *others) = self.segments
        if not others and CHAIN_RATES[rate][0] <= _MOST_PERIOD and CHAIN_RATES[rate][1] <= _MOST_PHASES:
            self.bytes = ByteTables(rate, quantizer.memory)
        self.nibbles = int(dims[:, :3].max()) + 1
        self._phases = self.bytes.phases if self.bytes and self.bytes.period == 1 else 0
        self._argument = _Code(
            self.dims.data_ptr(),
            self.tables.data_ptr(),
            self.d,
            self.words,
            self.nibbles,
            self._phases,
            quantizer.memory,
        )

    def argument(self) -> ctypes.Structure:
        """The structure that kernels take."""
        return self._argument

    def exact_bytes(self) -> int:
        """Bytes of shared memory that the query and the tables of exact scores take."""
        return 8 * (8 * self.words + 48) * self._phases if self._phases else 8 * self.d


class ByteTables:
    """Tables of a chain in bytes, for products of integers.

    Dimension i, of phase p, is about ``step[p] * (sum over ages o of entries[p, o, nibble of age o] - zero[p])``.
    Entries are at most 127 and their sums over ages at most 255.

    Parameters
    ----------
    bits : float
        A rate of at most three nibbles a period, and four dimensions.
    memory : int
        2 or 3.
    """

    def __init__(self, bits: float, memory: int) -> None:
        tables = chain_tables(bits, memory).astype(np.float64)
        self.phases, self.memory, self.period = len(tables), memory, CHAIN_RATES[bits][0]
        self.entries = np.zeros((self.phases, memory, 16), np.uint8)
        self.step, self.zero = np.zeros(self.phases), np.zeros(self.phases)
        for phase, table in enumerate(tables):
            self.entries[phase], self.step[phase], self.zero[phase] = _in_bytes(table)
        padded = np.zeros((_MOST_PHASES, 3, 16), np.uint8)
        padded[: self.phases, :memory] = self.entries
        self._argument = _Bytes()
        ctypes.memmove(self._argument.entry, padded.tobytes(), padded.nbytes)
        for phase in range(self.phases):
            self._argument.step[phase], self._argument.zero[phase] = self.step[phase], self.zero[phase]

    def argument(self) -> ctypes.Structure:
        """The structure that kernels take."""
        return self._argument


def _in_bytes(table: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Entries uint8 [memory, 16], step and zero for a table float64 [memory, 16], of little squared error."""
    span = np.ptp(table, axis=1)
    least = max(span.max() / 126, span.sum() / (255 - len(table)))
    options = []
    for step in least * np.linspace(1, 1.1, 21):
        scaled = (table - table.min(axis=1, keepdims=True)) / step
        entries, wasted, zero = np.zeros(table.shape, np.uint8), 0.0, 0.0
        for age, own in enumerate(scaled):
            moved = own[None, :] + np.linspace(0, 1, 32, endpoint=False)[:, None]
            left = np.rint(moved) - moved
            shift = int(left.var(axis=1).argmin())
            entries[age] = np.rint(moved[shift])
            wasted += float(left[shift].var()) * step**2
            zero += float((entries[age] - own).mean() - table[age].min() / step)
        options.append((wasted, entries, float(step), zero))
    return min(options, key=lambda option: option[0])[1:]


def _described(quantizer: Quantizer) -> tuple[np.ndarray, np.ndarray, list[tuple[int, float]]]:
    """Nibbles and table row int32 [D, 4] of every dimension, tables float32 [rows, 3, 16], and the segments."""
    segments = [(quantizer.d, quantizer.bits)]
    if quantizer.plan is not None:
        segments = [(s.dims, s.bits) for s in quantizer.plan.segments]
    dims, tables, first, rows = [], [], 0, 0
    for d, bits in segments:
        table, (p, q) = chain_tables(bits, quantizer.memory), CHAIN_RATES[bits]
        count, memory = chain_layout(d, p, q), table.shape[1]
        i = np.arange(d)
        own = np.full((d, 4), -1, np.int32)
        for age in range(memory):
            own[:, age] = first + (i * p // q - age) % count
        own[:, 3] = rows + i % q
        padded = np.zeros((len(table), 3, 16), np.float32)
        padded[:, :memory] = table
        dims.append(own)
        tables.append(padded)
        first += (count + 1) // 2 * 2
        rows += len(table)
    return np.concatenate(dims), np.concatenate(tables), segments


@dataclass(frozen=True)
class DeviceRows:
    """Rows to search, on a device.

    Parameters
    ----------
    blocks : torch.Tensor
        int32 [blocks, words / 4, 32, 4]: word w of row i is ``blocks[i // 32, w // 4, i % 32, w % 4]``.
    scale : torch.Tensor
        float32 [>= n].
    half_norm : torch.Tensor, optional
        float32 [>= n], for l2.
    n : int
        Rows in use.
    mask : torch.Tensor, optional
        int32 [ceil(n / 32)]: bit i % 32 of word i // 32 admits row i.
    ids : torch.Tensor, optional
        int64 [>= n]; by default the row number.
    """

    blocks: torch.Tensor
    scale: torch.Tensor
    half_norm: torch.Tensor | None
    n: int
    mask: torch.Tensor | None = None
    ids: torch.Tensor | None = None

    def argument(self) -> ctypes.Structure:
        """The structure that kernels take."""
        half, mask = (None if t is None else t.data_ptr() for t in (self.half_norm, self.mask))
        return _Rows(self.blocks.data_ptr(), self.scale.data_ptr(), half, mask, self.n)


def pack_blocks(blocks: torch.Tensor, start: int, codes: torch.Tensor) -> None:
    """Write codes uint8 [m, code_size] into rows ``start`` to ``start + m - 1`` of `blocks`, in place."""
    m, size = codes.shape
    units = blocks.shape[1]
    if m == 0:
        return
    padded = torch.zeros(m, 4 * UNIT * units, dtype=torch.uint8, device=codes.device)
    padded[:, :size] = codes
    rows = torch.arange(start, start + m, device=codes.device)
    blocks[rows // LANES, :, rows % LANES] = padded.view(torch.int32).view(m, units, UNIT)


def unpack_blocks(blocks: torch.Tensor, positions: torch.Tensor, code_size: int) -> torch.Tensor:
    """Codes uint8 [m, code_size] of the rows at `positions`, int64 [m]."""
    words = blocks[positions // LANES, :, positions % LANES].contiguous()
    return words.view(len(positions), -1).view(torch.uint8)[:, :code_size].contiguous()
