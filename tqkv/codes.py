"""The codes on torch tensors: rotated rows to bytes and back, on the device where the rows are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from tqcore import _core
from tqcore.chain import chain_code
from tqcore.codebook import boundaries, lloyd_max
from tqcore.config import CHAIN_RATES, ChainLayout
from tqcore.prod import Prod
from tqkv.tables import byte_tables

__all__ = ["ChainCode", "ProductCode", "RowCode", "ScalarCode", "row_code"]


class RowCode(ABC):
    """A code of rows of d coordinates of unit variance.

    Attributes
    ----------
    code_size : int
        Bytes of a row.
    n_scalars : int
        16-bit scalars of a row.
    """

    code_size: int
    n_scalars = 1

    @abstractmethod
    def encode(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Codes uint8 [n, code_size] of float32 [n, d], and float32 [n] second scalars over the first ones, if any."""

    @abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Rows float32 [n, d] of codes, without what a second scalar adds."""

    def reconstruct(self, codes: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Scaled rows float32 [n, d] of codes and their scalars float32 [n_scalars, n]."""
        return self.decode(codes) * scalars[0][:, None]


def row_code(code: str, d: int, bits: float, memory: int, seed: int, device: torch.device) -> RowCode:
    """The code of a name, "chain", "mse" or "prod", with its tables on a device."""
    if code == "chain":
        return ChainCode(d, bits, memory, device)
    if code == "mse":
        return ScalarCode(d, bits, device, rounded=bits in (2, 4))
    return ProductCode(d, int(bits), seed, device)


class ChainCode(RowCode):
    """The tail-biting chain of nibbles (tqcore/README.md, sections 2 and 3).

    Codes are those of the core. With memory 2 they stand for the values of `tqkv.tables`, which the attention kernel
    looks up in bytes: 0.1 to 1.2% more squared error.
    """

    def __init__(self, d: int, bits: float, memory: int, device: torch.device) -> None:
        self.d, self.bits, self.memory = d, bits, memory
        self.code_size = ChainLayout(d, bits).code_size
        self._encoder = self._decoder = chain_code(d, bits, memory)
        self._tables: torch.Tensor | None = None
        if memory == 2:
            tables = byte_tables("chain", d, bits).values()
            self._decoder = _core.chain_code(d, *CHAIN_RATES[bits], tables)
            self._tables = torch.from_numpy(tables).to(device)

    def encode(self, y: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Codes of the best chain of each row."""
        if y.is_cuda:
            from tqcore.gpu import encode_chain

            return encode_chain(y, self.bits, self.memory)[0], None
        return torch.from_numpy(_core.encode(self._encoder, y.contiguous().numpy(), None)[0]), None

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Rows of codes."""
        if codes.is_cuda:
            from tqcore.gpu import decode_chain

            return decode_chain(codes.contiguous(), self.d, self.bits, self.memory, self._tables)
        return torch.from_numpy(_core.decode(self._decoder, codes.contiguous().numpy()))


class ScalarCode(RowCode):
    """TurboQuant's Algorithm 1 (arXiv 2504.19874); at b + 1/2 bits half of the dimensions have one bit more.

    With `rounded`, codes of 2 and 4 bits stand for the values of `tqkv.tables` instead of the centroids, which the
    attention kernel looks up in bytes: 0.6% more squared error at 4 bits.
    """

    def __init__(self, d: int, bits: float, device: torch.device, rounded: bool = False) -> None:
        low = math.floor(bits)
        first = 0 if bits == low else d // 2
        self._parts = [(0, first, low + 1), (first, d, low)] if first else [(0, d, low)]
        centroids = [lloyd_max(d, b) for _, _, b in self._parts]
        values = [byte_tables("mse", d, bits).values()[0, 0, : 2**low]] if rounded else centroids
        self._centroids = [torch.from_numpy(c).to(device) for c in values]
        self._boundaries = [torch.from_numpy(boundaries(c)).to(device) for c in centroids]
        self._sizes = [-(-(end - start) * b // 8) for start, end, b in self._parts]
        self.code_size = sum(self._sizes)

    def encode(self, y: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Indices of the nearest centroids, as a little-endian stream of bits."""
        codes = []
        for (start, end, bits), edges in zip(self._parts, self._boundaries, strict=True):
            index = torch.bucketize(y[:, start:end].contiguous(), edges)
            codes.append(_bits_to_bytes(_index_to_bits(index, bits)))
        return torch.cat(codes, dim=1), None

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Centroids of codes."""
        rows = []
        for (start, end, bits), centroids, part in zip(
            self._parts, self._centroids, codes.split(self._sizes, dim=1), strict=True
        ):
            stream = _bytes_to_bits(part, (end - start) * bits).view(len(codes), end - start, bits)
            weights = 1 << torch.arange(bits, device=codes.device)
            rows.append(centroids[(stream * weights).sum(-1)])
        return torch.cat(rows, dim=1)


class ProductCode(RowCode):
    """TurboQuant's Algorithm 2: a scalar code of b - 1 bits and the signs of its sketched error; two scalars a row."""

    n_scalars = 2

    def __init__(self, d: int, bits: int, seed: int, device: torch.device) -> None:
        self._prod = Prod(d, bits, "orthogonal", seed)
        self.d, self.code_size = d, self._prod.code_size
        self._scalar = ScalarCode(d, bits - 1, device)
        # The sketch S itself, so that y @ sketch.T is S y.
        sketch = self._prod.project(np.eye(d, dtype=np.float32)).T
        self._sketch = torch.from_numpy(np.ascontiguousarray(sketch)).to(device)

    def encode(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes, and the length of the error times the constant that makes the estimate unbiased."""
        scalar, _ = self._scalar.encode(y)
        residual = y - self._scalar.decode(scalar)
        signs = residual @ self._sketch.T >= 0
        return torch.cat([scalar, _bits_to_bytes(signs.long())], dim=1), residual.norm(
            dim=1
        ) * self._prod.const

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The scalar part."""
        return self._scalar.decode(codes[:, : self._prod.mse_size])

    def reconstruct(self, codes: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Scalar part plus the error as its signs tell it."""
        z = _bytes_to_bits(codes[:, self._prod.mse_size :], self.d).float() * 2 - 1
        error = z @ self._sketch
        return super().reconstruct(codes, scalars) + error * scalars[1][:, None]


def _index_to_bits(index: torch.Tensor, bits: int) -> torch.Tensor:
    """Bits int64 [n, d * bits], least significant first, of indices int64 [n, d]."""
    shifts = torch.arange(bits, device=index.device)
    return ((index[..., None] >> shifts) & 1).flatten(1)


def _bits_to_bytes(bits: torch.Tensor) -> torch.Tensor:
    """Bytes uint8 [n, ceil(m / 8)] of bits int64 [n, m]."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(bits), -1, 8)
    return (padded << torch.arange(8, device=bits.device)).sum(-1).to(torch.uint8)


def _bytes_to_bits(codes: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` bits, int64 [n, count], of bytes uint8 [n, size]."""
    return ((codes[..., None].long() >> torch.arange(8, device=codes.device)) & 1).flatten(1)[:, :count]
