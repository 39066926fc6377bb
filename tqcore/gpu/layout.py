"""What the search kernels know of a code and of the rows that are searched."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch

from tqcore.chain import chain_tables
from tqcore.config import CHAIN_RATES, chain_layout
from tqcore.quantizer import Quantizer

__all__ = ["LANES", "MAX_WORDS", "CodeLayout", "DeviceRows", "pack_blocks", "unpack_blocks"]

LANES = 32  # rows of a block
MAX_WORDS = 1700  # 32-bit words of a row, so that a block fits shared memory


class _Code(ctypes.Structure):
    _fields_ = (
        ("dims", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("d", ctypes.c_int32),
        ("words", ctypes.c_int32),
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("half_norm", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("n", ctypes.c_int64),
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
        For rows of more than `MAX_WORDS` words.
    """

    def __init__(self, quantizer: Quantizer, device: torch.device) -> None:
        dims, tables, self.segments = _described(quantizer)
        self.d = len(dims)
        self.code_size = quantizer.code_size
        self.words = -(-quantizer.code_size // 4)
        if self.words > MAX_WORDS:
            raise ValueError(
                f"a row must take at most {4 * MAX_WORDS} bytes on a CUDA device, got {quantizer.code_size}"
            )
        self.dims = torch.from_numpy(dims).to(device)
        self.tables = torch.from_numpy(tables).to(device)
        # The most that one coordinate of a query can add to a score, for error bounds.
        reach = np.abs(tables).max(axis=2).sum(axis=1)
        self.reach = torch.from_numpy(reach[dims[:, 3]].astype(np.float32)).to(device)

    def argument(self) -> ctypes.Structure:
        """The structure that kernels take."""
        return _Code(self.dims.data_ptr(), self.tables.data_ptr(), self.d, self.words)


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
        int32 [blocks, words, 32]: word w of row i is ``blocks[i // 32, w, i % 32]``.
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
    words = blocks.shape[1]
    if m == 0:
        return
    padded = torch.zeros(m, 4 * words, dtype=torch.uint8, device=codes.device)
    padded[:, :size] = codes
    rows = torch.arange(start, start + m, device=codes.device)
    blocks[rows // LANES, :, rows % LANES] = padded.view(torch.int32)


def unpack_blocks(blocks: torch.Tensor, positions: torch.Tensor, code_size: int) -> torch.Tensor:
    """Codes uint8 [m, code_size] of the rows at `positions`, int64 [m]."""
    words = blocks[positions // LANES, :, positions % LANES].contiguous()
    return words.view(torch.uint8)[:, :code_size].contiguous()
