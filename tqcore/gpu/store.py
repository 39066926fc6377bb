"""Codes of many vectors on one CUDA device: added, moved, searched and read back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tqcore.gpu.layout import LANES, UNIT, DeviceRows, pack_blocks, unpack_blocks
from tqcore.gpu.quantizer import DeviceQuantizer
from tqcore.gpu.replay import Replays
from tqcore.gpu.search import longest, range_search, search
from tqcore.quantizer import Quantizer

__all__ = ["DeviceStore", "cuda_device", "is_cuda_tensor"]


def cuda_device(name: str) -> torch.device:
    """The CUDA device "cuda" or "cuda:i"; RuntimeError where there is none."""
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"device {name!r} needs a CUDA device and a CUDA build of torch, and torch finds none"
        )
    device = torch.device(name)
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def is_cuda_tensor(x: Any) -> bool:
    """Whether `x` is a tensor of torch on a CUDA device."""
    return isinstance(x, torch.Tensor) and x.is_cuda


class DeviceStore:
    """Codes and scalars of n vectors by position, in device memory.

    Results are tensors if the vectors or queries came as tensors of the device, NumPy arrays otherwise. Room grows by
    doubling, or at once to what a large add needs; while it grows, the old and the new room exist side by side. Work
    goes to torch's current stream, and a search waits for the changes made on other streams before it. Searches of few
    queries that come again are replayed as CUDA graphs; see `tqcore.gpu.replay.Replays` for the scratch they keep.

    Parameters
    ----------
    quantizer : Quantizer
        Of a code that the device searches; see `DeviceQuantizer`.
    device : torch.device
        A CUDA device.
    """

    def __init__(self, quantizer: Quantizer, device: torch.device) -> None:
        self.device = device
        self.n = 0
        self._coder = DeviceQuantizer(quantizer, device)
        self._size, self._metric_l2 = quantizer.code_size, quantizer.store_norm
        units = self._coder.layout.words // UNIT
        self._blocks = torch.zeros(0, units, LANES, UNIT, dtype=torch.int32, device=device)
        self._scalars = torch.zeros(quantizer.n_scalars, 0, device=device)
        self._measured, self._lengths = 0, (0.0, 0.0)
        self._changed, self._passed = torch.cuda.Event(), torch.cuda.Event()
        self._described: DeviceRows | None = None
        self._replays = Replays()

    def nbytes(self) -> int:
        """Bytes of device memory held, spare capacity included; scratch of searches is not."""
        return self._blocks.nbytes + self._scalars.nbytes

    def check(self, x: torch.Tensor, name: str, d: int) -> torch.Tensor:
        """A tensor on this device as float32 [n, d], contiguous; errors are those for NumPy arrays."""
        x = self.check_shape(x, name, d)
        finite = torch.linalg.vecdot(x, x).isfinite()
        if not bool(finite.all()):
            row = int(torch.nonzero(~finite)[0])
            raise ValueError(f"{name} must be finite with squared norms within float32, but row {row} is not")
        return x

    def check_shape(self, x: torch.Tensor, name: str, d: int) -> torch.Tensor:
        """What `check` does but for values that are not finite, which the search itself refuses."""
        if x.dtype not in (torch.float16, torch.float32, torch.float64, torch.bfloat16):
            raise TypeError(f"{name} must hold floating-point values, got dtype {x.dtype}")
        if x.ndim != 2 or x.shape[1] != d:
            raise ValueError(f"{name} must have the shape [n, {d}], got {tuple(x.shape)}")
        if x.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, got a tensor on {x.device}")
        if x.dtype is torch.float32 and x.is_contiguous() and not x.requires_grad:
            return x
        return x.detach().float().contiguous()

    def _tensor(self, x: Any) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            return x
        # torch wants what it could write to, and rows of a mapped file are not.
        return torch.from_numpy(np.require(x, requirements=("C", "W"))).to(self.device)

    @staticmethod
    def _as_came(values: tuple[torch.Tensor, ...], x: Any) -> tuple[Any, ...]:
        return values if isinstance(x, torch.Tensor) else tuple(v.cpu().numpy() for v in values)

    def reserve(self, needed: int) -> None:
        """Make room for `needed` rows."""
        capacity = self._scalars.shape[1]
        if needed <= capacity:
            return
        self._changes()
        capacity = -(-max(needed, 2 * capacity if needed < 2 * capacity else needed) // LANES) * LANES
        with torch.cuda.device(self.device):
            blocks = torch.zeros(
                capacity // LANES, *self._blocks.shape[1:], dtype=torch.int32, device=self.device
            )
            blocks[: len(self._blocks)] = self._blocks
            self._blocks = blocks
            scalars = torch.zeros(len(self._scalars), capacity, device=self.device)
            scalars[:, : self._scalars.shape[1]] = self._scalars
            self._scalars = scalars
            self._record()

    def _record(self) -> None:
        """Mark a change on torch's current stream, which searches on others wait for."""
        changed = torch.cuda.Event()
        changed.record()
        self._changed = changed

    def _wait(self, stream: torch.cuda.Stream | None = None) -> None:
        """Let a stream wait for the last change, unless that is known to have passed."""
        changed = self._changed
        if self._passed is changed:
            return
        if changed.query():
            self._passed = changed
        else:
            changed.wait(stream)

    def _changes(self) -> None:
        """Let go of what describes the rows as they were."""
        self._described = None
        self._replays.clear()

    def add(self, start: int, vectors: Any) -> None:
        """Encode float32 [m, d] into reserved rows from `start` on; they count once `n` includes them."""
        with torch.cuda.device(self.device):
            for first in range(0, len(vectors), self._coder.chunk_rows()):
                part = self._tensor(vectors[first : first + self._coder.chunk_rows()])
                codes, scalars = self._coder.encode(part)
                self._check_scalars(scalars, first)
                self.write(start + first, codes, scalars)

    @staticmethod
    def _check_scalars(scalars: torch.Tensor, first: int) -> None:
        finite = scalars.isfinite().all(dim=1)
        if not bool(finite.all()):
            row = first + int(torch.nonzero(~finite)[0])
            raise ValueError(f"x must have squared norms within float32's range, got row {row} beyond it")

    def write(self, start: int, codes: Any, scalars: Any) -> None:
        """Put codes uint8 [m, code_size] and scalars float32 [m, n_scalars] at reserved rows from `start` on."""
        self._changes()
        with torch.cuda.device(self.device):
            codes, scalars = self._tensor(codes), self._tensor(scalars)
            pack_blocks(self._blocks, start, codes)
            self._scalars[:, start : start + len(codes)] = scalars.T
            self._measured = min(self._measured, start)
            self._record()

    def move(self, holes: np.ndarray, movers: np.ndarray, n: int) -> None:
        """Move the rows `movers` into `holes`, int64 arrays, and keep the first `n`."""
        self._changes()
        with torch.cuda.device(self.device):
            if len(holes):
                to, source = self._tensor(holes), self._tensor(movers)
                self._blocks[to // LANES, :, to % LANES] = self._blocks[source // LANES, :, source % LANES]
                self._scalars[:, to] = self._scalars[:, source]
                self._record()
        self.n = n
        self._measured = min(self._measured, n)

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes uint8 [m, code_size] and scalars float32 [m, n_scalars] at `positions`, int64 [m], on the host."""
        codes, scalars = self._at(positions)
        return codes.cpu().numpy(), scalars.cpu().numpy()

    def _at(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.cuda.device(self.device):
            self._wait()
            at = self._tensor(positions)
            return unpack_blocks(self._blocks, at, self._size), self._scalars[:, at].T.contiguous()

    def decode(self, positions: np.ndarray) -> np.ndarray:
        """Vectors float32 [m, d] at `positions`, int64 [m], on the host."""
        out = np.empty((len(positions), self._coder.quantizer.d), np.float32)
        step = self._coder.chunk_rows()
        with torch.cuda.device(self.device):
            for first in range(0, len(positions), step):
                part = slice(first, first + step)
                out[part] = self._coder.decode(*self._at(positions[part])).cpu().numpy()
        return out

    def copy(self) -> DeviceStore:
        """An independent store."""
        other = DeviceStore(self._coder.quantizer, self.device)
        other.reserve(self.n)
        blocks = len(other._blocks)
        with torch.cuda.device(self.device):
            other._blocks.copy_(self._blocks[:blocks])
            other._scalars.copy_(self._scalars[:, : blocks * LANES])
            other._record()
        other.n = self.n
        return other

    def search(
        self, queries: Any, k: int, metric: str, mask: np.ndarray | None, ids: torch.Tensor | None
    ) -> tuple[Any, Any]:
        """D float32 and I int64 [nq, k] of `tqcore.gpu.search.search`; `mask` is a bit set uint8 [ceil(n / 8)]."""
        with torch.cuda.device(self.device.index):
            q = self._tensor(queries)
            # Asked once, by number: torch takes longer to find the current device than to launch a kernel.
            stream = torch.cuda.current_stream(self.device.index)
            rows = self._rows(mask, ids, stream)
            found = self._replays.search(self._coder, rows, q, k, metric, self._lengths, stream)
            if found is not None:
                return self._as_came(found, queries)  # pyright: ignore[reportReturnType]
            q, constants = self._coder.query(q, metric)
            return self._as_came(search(self._coder.layout, rows, q, constants, k, self._lengths), queries)  # pyright: ignore[reportReturnType]

    def range_search(
        self, queries: Any, radius: float, metric: str, mask: np.ndarray | None, ids: torch.Tensor | None
    ) -> tuple[Any, Any, Any]:
        """Return lims, D and I of `tqcore.gpu.search.range_search`."""
        with torch.cuda.device(self.device):
            rows = self._rows(mask, ids)
            q, constants = self._coder.query(self._tensor(queries), metric)
            return self._as_came(range_search(self._coder.layout, rows, q, constants, radius), queries)  # pyright: ignore[reportReturnType]

    def _rows(
        self, mask: np.ndarray | None, ids: torch.Tensor | None, stream: torch.cuda.Stream | None = None
    ) -> DeviceRows:
        rows = self._described  # before the wait, which then covers what made it
        self._wait(stream)
        if mask is not None or rows is None or rows.n != self.n or rows.ids is not ids:
            bits = None
            if mask is not None:
                padded = np.zeros(-(-len(mask) // 4) * 4, np.uint8)
                padded[: len(mask)] = mask
                bits = self._tensor(padded.view(np.int32))
            half_norm = 0.5 * self._scalars[-1] if self._metric_l2 else None
            rows = DeviceRows(self._blocks, self._scalars[0], half_norm, self.n, bits, ids)
            if mask is None:
                self._record()  # other streams read half the norms as well
                self._described = rows
        if self._measured < self.n:
            length, missed = longest(self._coder.layout, rows, self._measured)
            self._lengths = max(self._lengths[0], length), max(self._lengths[1], missed)
            self._measured = self.n
        return rows

    def upload(self, ids: np.ndarray) -> torch.Tensor:
        """Ids int64 [n] on the device."""
        return self._tensor(ids)
