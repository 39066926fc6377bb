"""Vectors to codes and back on CUDA, for the codes that the device searches."""

from __future__ import annotations

import math

import numpy as np
import torch

from tqcore.config import CHAIN_RATES, ChainLayout
from tqcore.gpu.chain import decode_chain, encode_chain
from tqcore.gpu.layout import CodeLayout
from tqcore.gpu.rotation import hadamard_rotate, normalize, sign_words
from tqcore.quantizer import Quantizer
from tqcore.rotation import HadamardRotation

__all__ = ["DeviceQuantizer"]

_CHUNK_BYTES = 1 << 30  # of rows encoded or decoded at a time
_SEGMENT_STREAM = 16


class DeviceQuantizer:
    """What a `Quantizer` does, for tensors of one CUDA device and with the same codes.

    With an oblivious plan codes are equal bit for bit. A calibrated plan multiplies by a dense matrix, whose sums are
    taken in another order, so coordinates may differ in their last bits and codes within rounding of a boundary.

    Parameters
    ----------
    quantizer : Quantizer
        Of code "chain" with the Hadamard rotation.
    device : torch.device
        A CUDA device.

    Raises
    ------
    ValueError
        For other codes, rotations and scales.
    """

    def __init__(self, quantizer: Quantizer, device: torch.device) -> None:
        if quantizer.code != "chain" or quantizer.rotation != "hadamard":
            raise ValueError(
                "device 'cuda' takes code='chain' with rotation='hadamard', "
                f"got {quantizer.code!r} with {quantizer.rotation!r}; index those on the CPU"
            )
        if quantizer.same_scale is not None:
            raise ValueError(
                "device 'cuda' takes scale 'unbiased' or 'norm', got 'none'; index those on the CPU"
            )
        mapped = quantizer.plan is not None and not quantizer.plan.centres_only
        if quantizer.bits not in CHAIN_RATES and not mapped:
            rates = ", ".join(f"{b:g}" for b in CHAIN_RATES)
            raise ValueError(f"device 'cuda' takes bits among {rates}, got {quantizer.bits:g}")
        self.quantizer, self.device = quantizer, device
        self.layout = CodeLayout(quantizer, device)
        plan = quantizer.plan
        self._signs = sign_words(HadamardRotation(quantizer.d, quantizer.seed).signs).to(device)
        self._mean = None if plan is None else self._tensor(plan.mean)
        self._planned = plan is not None and not plan.centres_only
        if plan is not None and self._planned:
            self._encode_matrix = self._tensor(plan.encode_matrix).double()
            self._query_matrix = self._tensor(plan.query_matrix).double()
            self._deviations = self._tensor(np.asarray(plan.deviations))
            self._segment_signs = [
                sign_words(HadamardRotation(s.dims, quantizer.seed, _SEGMENT_STREAM + i).signs).to(device)
                for i, s in enumerate(plan.segments)
            ]
            self._parts = plan.parts

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)

    def chunk_rows(self) -> int:
        """Rows that `encode` and `decode` take at a time, which bounds their scratch memory."""
        return max(256, _CHUNK_BYTES // (4 * self.quantizer.d))

    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        """Rows float32 [n, d] as they are, or at length 1 if the quantizer takes them so."""
        if not self.quantizer.normalize:
            return x
        lengths = x.double().square().sum(dim=1).sqrt()
        return (x / torch.where(lengths > 0, lengths, 1.0)[:, None]).float()

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes uint8 [n, code_size] and scalars float32 [n, n_scalars] of vectors float32 [n, d]."""
        quantizer, root = self.quantizer, math.sqrt(self.quantizer.d)
        if self._mean is not None:
            x = self.normalized(x) - self._mean
        if self._planned:
            return self._encode_planned(x)
        y, norms = normalize(x, self._signs)
        codes, dots = encode_chain(y, quantizer.bits, quantizer.memory)
        if quantizer.plan is None and quantizer.normalize:
            norms = (norms > 0).double()
        scale = norms / root
        if quantizer.scale == "unbiased":
            scale = torch.where(dots > 0, norms * root / dots, scale)
        return codes, self._columns(scale, norms)

    def _encode_planned(self, centred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.quantizer.plan
        z = (centred.double() @ self._encode_matrix).float()
        rotated = torch.empty_like(z)
        for part, signs in zip(self._parts, self._segment_signs, strict=True):
            rotated[:, part] = hadamard_rotate(z[:, part], signs)
        y, _ = normalize(rotated, None)
        codes = [
            encode_chain(y[:, part], s.bits, plan.memory)[0]
            for part, s in zip(self._parts, plan.segments, strict=True)
        ]
        joined = torch.cat(codes, dim=1)
        z = z * self._deviations
        yhat = self._decoded(joined)
        decoded = torch.empty_like(z)
        for part, signs in zip(self._parts, self._segment_signs, strict=True):
            decoded[:, part] = hadamard_rotate(yhat[:, part], signs, inverse=True)
        decoded *= self._deviations
        energy = z.double().square().sum(dim=1)
        overlap = (z.double() * decoded).sum(dim=1)
        scale = torch.where(overlap > 0, energy / overlap, 0.0)
        return joined, self._columns(scale, centred.double().square().sum(dim=1).sqrt())

    def _columns(self, scale: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        columns = [scale, norms**2] if self.quantizer.store_norm else [scale]
        return torch.stack(columns, dim=1).float()

    def _decoded(self, codes: torch.Tensor) -> torch.Tensor:
        out, first, byte = torch.empty(len(codes), self.layout.d, device=self.device), 0, 0
        for d, bits in self.layout.segments:
            size = (self._nibbles(d, bits) + 1) // 2
            out[:, first : first + d] = decode_chain(
                codes[:, byte : byte + size], d, bits, self.quantizer.memory
            )
            first, byte = first + d, byte + size
        return out

    @staticmethod
    def _nibbles(d: int, bits: float) -> int:
        return ChainLayout(d, bits).n_nibbles

    def decode(self, codes: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Vectors float32 [n, d] of codes and scalars from `encode`."""
        y = self._decoded(codes)
        if self._planned:
            centred = (y.double() @ self._query_matrix.T).float()
        else:
            centred = hadamard_rotate(y, self._signs, inverse=True)
        x = centred * scalars[:, :1]
        return x if self._mean is None else x + self._mean

    def query(self, q: torch.Tensor, metric: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Queries float32 [nq, d] as the search takes them: float32 [nq, D], and constants float64 [nq] or none."""
        q = self.normalized(q)
        if metric == "l2":
            q = q if self._mean is None else q - self._mean
            constants = q.double().square().sum(dim=1)
        elif self._mean is None:
            constants = None
        else:
            constants = q.double() @ self._mean.double()
        if self._planned:
            return (q.double() @ self._query_matrix).float(), constants
        return hadamard_rotate(q, self._signs), constants
