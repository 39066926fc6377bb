"""Chain codes on CUDA: encoding by dynamic programming and decoding, bit for bit those of the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from tqcore.chain import chain_tables
from tqcore.config import CHAIN_RATES, chain_layout
from tqcore.gpu.rtc import Kernel, Long, Module, compile_module

__all__ = ["decode_chain", "encode_chain", "table_module", "values_on"]

_WARM = 32  # nibbles of the pass that fixes the state at the seam
_SHARED = 200 << 10  # bytes of shared memory that a block may take
_MOST_SCRATCH = 1 << 30  # bytes of back pointers in device memory


@lru_cache(maxsize=8)
def _source(name: str) -> str:
    return files("tqcore.gpu").joinpath(name).read_text()


@dataclass(frozen=True)
class _Host:
    """Tables of one chain for the kernels: linear terms, squares per kind of nibble, kinds by phase and count."""

    values: np.ndarray
    linear: np.ndarray
    squares: np.ndarray
    kinds: np.ndarray

    @property
    def n_kinds(self) -> int:
        return len(self.squares)


def _closing(p: int, q: int) -> int:
    """Most dimensions that close at one nibble."""
    return -(-q // p)


@lru_cache(maxsize=64)
def _host(bits: float, memory: int) -> _Host:
    """The integer costs of `tqcore.reference.chain.chain_terms`, for every kind of nibble that a d can bring."""
    p, q = CHAIN_RATES[bits]
    values = chain_tables(bits, memory)
    unit = 2.0**16 if p < q else 2.0**18
    closing = _closing(p, q)
    kinds = np.zeros((q, closing + 1), np.int32)
    squares = []
    for phase in sorted({-(-j * q // p) % q for j in range(p)}):  # where the dimensions of a nibble can begin
        for count in range(closing + 1):
            energy = np.zeros((16,) * memory)
            for i in range(phase, phase + count):
                reach = np.zeros((16,) * memory)
                for o in range(memory):
                    shape = [1] * memory
                    shape[o] = 16
                    reach = reach + values[i % q, o].astype(np.float64).reshape(shape)
                energy += reach**2
            kinds[phase, count] = len(squares)
            squares.append(np.rint(unit * energy).astype(np.int32) * 16)
    stacked = np.stack(squares)
    if memory == 2:
        stacked = np.pad(stacked, ((0, 0), (0, 0), (0, 4)))  # rows of 20 words spare bank conflicts
    else:
        stacked = stacked.reshape(-1, 16, 16, 4, 4).transpose(0, 1, 3, 2, 4)
    linear = (-2.0 * unit * values.astype(np.float64)).astype(np.float32)
    return _Host(values, linear, np.ascontiguousarray(stacked), kinds)


@lru_cache(maxsize=64)
def _on_device(bits: float, memory: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    host = _host(bits, memory)
    return tuple(torch.from_numpy(a).to(device) for a in (host.values, host.linear, host.squares, host.kinds))


def values_on(bits: float, memory: int, device: torch.device) -> torch.Tensor:
    """Tables of a chain, float32 [Q, memory, 16] on `device`."""
    return _on_device(bits, memory, device)[0]


def table_module(name: str, bits: float, memory: int) -> Module:
    """The source `name` of this package compiled for a rate and a memory."""
    p, q = CHAIN_RATES[bits]
    options = (f"-DP={p}", f"-DQ={q}", f"-DMEMORY={memory}", f"-DCLOSING={_closing(p, q)}")
    return compile_module(_source(name), options)


def _kernel(name: str, bits: float, memory: int) -> Kernel:
    return table_module("chain.cu", bits, memory).kernel(name)


def encode_chain(y: torch.Tensor, bits: float, memory: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of rotated rows, the bits that `tqcore._core.encode` gives.

    Parameters
    ----------
    y : torch.Tensor
        float32 [n, d] on a CUDA device, rows of squared length d, finite.
    bits : float
        A rate of `tqcore.config.CHAIN_RATES`.
    memory : int
        2 or 3.

    Returns
    -------
    codes : torch.Tensor
        uint8 [n, code_size].
    dots : torch.Tensor
        float64 [n]: inner products of the rows with their reconstructions.
    """
    _check(y, "y", torch.float32)
    n, d = y.shape
    nibbles = chain_layout(d, *CHAIN_RATES[bits])
    size = (nibbles + 1) // 2
    codes = torch.empty(n, size, dtype=torch.uint8, device=y.device)
    dots = torch.empty(n, dtype=torch.float64, device=y.device)
    if n == 0:
        return codes, dots
    y = y.contiguous()
    host, (values, linear, squares, kinds) = _host(bits, memory), _on_device(bits, memory, y.device)
    back = (max(nibbles, _WARM) + 7) // 8 * 8 * (128 if memory == 3 else 8)
    fixed = 4 * (2 * host.linear.size + -(-host.kinds.size // 4) * 4)
    fixed += 4 * 320 * host.n_kinds if memory == 2 else 0
    of_group = 64 if memory == 2 else 4 * 304
    groups, shared, scratch = 8, 0, None
    with torch.cuda.device(y.device):
        processors = torch.cuda.get_device_properties(y.device).multi_processor_count
        if memory == 2 and fixed + 2 * (of_group + back) <= _SHARED:
            while groups > 2 and fixed + groups * (of_group + back) > _SHARED // 2:
                groups //= 2
            shared = fixed + groups * (of_group + back)
            blocks = 1 << 16
        else:
            shared = fixed + groups * of_group
            blocks = max(1, min(8 * processors, _MOST_SCRATCH // (groups * back)))
            blocks = min(blocks, -(-n // groups))
            scratch = torch.empty(blocks * groups * back, dtype=torch.uint8, device=y.device)
        _kernel("encode", bits, memory)(
            (min(blocks, -(-n // groups)),),
            (16 * groups,),
            (
                y,
                Long(n),
                d,
                d,
                nibbles,
                values,
                linear,
                squares,
                kinds,
                host.n_kinds,
                codes,
                size,
                size,
                dots,
                scratch,
            ),
            shared=shared,
        )
    return codes, dots


def decode_chain(
    codes: torch.Tensor, d: int, bits: float, memory: int = 2, tables: torch.Tensor | None = None
) -> torch.Tensor:
    """Reconstructed rotated rows, float32 [n, d], of codes uint8 [n, code_size] on a CUDA device.

    `tables`, float32 [Q, memory, 16] on that device, take the place of the chain's own.
    """
    _check(codes, "codes", torch.uint8)
    nibbles = chain_layout(d, *CHAIN_RATES[bits])
    if codes.shape[1] != (nibbles + 1) // 2:
        raise ValueError(f"codes must have {(nibbles + 1) // 2} bytes a row, got {codes.shape[1]}")
    codes = codes.contiguous()
    n, size = codes.shape
    out = torch.empty(n, d, dtype=torch.float32, device=codes.device)
    if n:
        values = values_on(bits, memory, codes.device) if tables is None else tables.contiguous()
        with torch.cuda.device(codes.device):
            _kernel("decode", bits, memory)(
                (min(1 << 16, -(-n * d // 256)),),
                (256,),
                (codes, Long(n), size, d, d, nibbles, values, out),
            )
    return out


def _check(x: Any, name: str, dtype: torch.dtype) -> None:
    if not isinstance(x, torch.Tensor) or not x.is_cuda or x.dtype != dtype or x.ndim != 2:
        what = (
            f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, torch.Tensor) else type(x).__name__
        )
        raise TypeError(f"{name} must be a 2-dimensional {dtype} tensor on a CUDA device, got {what}")
