"""Indexes on one CUDA device under test: ours, faiss-gpu's, and torch's bfloat16 product."""

from __future__ import annotations

from typing import Any

from ..errors import Unavailable
from .base import require

__all__ = ["DeviceFaiss", "DeviceOurs", "DeviceProduct"]

_PRODUCT_ROWS = 1 << 17
_PQ_BYTES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)  # that faiss-gpu has kernels for


class DeviceOurs:
    """`TurboQuantIndex` on the device; `bits` a dimension."""

    probes = (None,)

    def __init__(self, d: int, bits: float, metric: str, n: int, **options: Any) -> None:  # noqa: ARG002
        from tqann import TurboQuantIndex

        self.index = TurboQuantIndex(d, bits, metric, device="cuda", **options)
        self.bytes_per_vector = float(self.index.sa_code_size())

    def train(self, x: Any) -> None:
        """Nothing is learnt."""

    def add(self, x: Any) -> None:
        """Append a tensor float32 [m, d]."""
        self.index.add(x)

    def search(self, q: Any, k: int) -> Any:
        """Ids int64 [nq, k], a tensor."""
        return self.index.search(q, k)[1]


class DeviceProduct:
    """Rows in bfloat16, `torch.matmul` with 131,072 of them at a time and `torch.topk`."""

    probes = (None,)

    def __init__(self, d: int, bits: float, metric: str, n: int) -> None:  # noqa: ARG002
        if metric == "l2":
            raise Unavailable("made for inner products and cosine")
        import torch

        self.torch, self.parts = torch, []
        self.base, self.bytes_per_vector = None, 2.0 * d

    def train(self, x: Any) -> None:
        """Nothing is learnt."""

    def add(self, x: Any) -> None:
        """Append a tensor float32 [m, d]."""
        self.parts.append(x.bfloat16())
        self.base = None

    def search(self, q: Any, k: int) -> Any:
        """Ids int64 [nq, k], a tensor; 512 queries at a time."""
        torch = self.torch
        if self.base is None:
            self.base, self.parts = torch.cat(self.parts), []
            self.parts.append(self.base)
        out = []
        for part in q.bfloat16().split(512):
            values, ids = [], []
            for start in range(0, len(self.base), _PRODUCT_ROWS):
                rows = self.base[start : start + _PRODUCT_ROWS]
                v, i = torch.topk(part @ rows.T, min(k, len(rows)), dim=1)
                values.append(v)
                ids.append(i + start)
            best = torch.topk(torch.cat(values, 1), k, dim=1).indices
            out.append(torch.cat(ids, 1).gather(1, best))
        return torch.cat(out)


class DeviceFaiss:
    """An index of faiss-gpu, fed with tensors; `kind` is flat32, flat16, ivf-pq or ivf-sq.

    Inverted lists are as many as four roots of n, and `bits` a dimension are those of the codes; 8 bytes of id are
    counted with them, as faiss-gpu stores them.
    """

    def __init__(self, d: int, bits: float, metric: str, n: int, *, kind: str) -> None:
        faiss: Any = require("faiss", "faiss-gpu")
        self.faiss = faiss
        if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
            raise Unavailable("this faiss is built without CUDA (pip install faiss-gpu)")
        require("faiss.contrib.torch_utils", "faiss-gpu")  # lets its indexes take tensors
        self.resources = faiss.StandardGpuResources()
        number = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        lists = 1 << max(2, round(4 * n**0.5).bit_length() - 1)
        self.probes: tuple[int | None, ...] = tuple(p for p in (1, 4, 16, 64, 256) if p <= lists)
        self.index: Any
        if kind.startswith("flat"):
            config = faiss.GpuIndexFlatConfig()
            config.useFloat16 = kind == "flat16"
            self.index = faiss.GpuIndexFlat(self.resources, d, number, config)
            self.bytes_per_vector, self.probes = (2.0 if config.useFloat16 else 4.0) * d, (None,)
        elif kind == "ivf-pq":
            self.index = self._product(d, bits, number, lists)
            self.bytes_per_vector = d * bits / 8 + 8
        else:
            name = {4.0: "QT_4bit", 8.0: "QT_8bit"}.get(bits)
            if name is None:
                raise Unavailable(f"GPU IVF-SQ has codes of 4 and 8 bits, not {bits:g}")
            config = faiss.GpuIndexIVFScalarQuantizerConfig()
            kind_number = getattr(faiss.ScalarQuantizer, name)
            self.index = faiss.GpuIndexIVFScalarQuantizer(
                self.resources, d, lists, kind_number, number, True, config
            )
            self.bytes_per_vector = d * bits / 8 + 8

    def _product(self, d: int, bits: float, number: int, lists: int) -> Any:
        size = d * bits / 8
        if size not in _PQ_BYTES or d % int(size):
            raise Unavailable(
                f"GPU IVF-PQ has codes of at most 96 bytes in equal parts, not {size:g} of d = {d}"
            )
        config = self.faiss.GpuIndexIVFPQConfig()
        config.useFloat16LookupTables = True
        return self.faiss.GpuIndexIVFPQ(self.resources, d, lists, int(size), 8, number, config)

    def train(self, x: Any) -> None:
        """Lists, and what the codes learn, from at most 256 rows a list."""
        if not self.index.is_trained:
            self._checked(self.index.train, x)

    def add(self, x: Any) -> None:
        """Append a tensor float32 [m, d]."""
        self._checked(self.index.add, x)

    def search(self, q: Any, k: int) -> Any:
        """Ids int64 [nq, k], a tensor."""
        return self.index.search(q, k)[1]

    def probe(self, count: int) -> None:
        """Look into `count` lists from here on."""
        self.index.nprobe = count

    @staticmethod
    def _checked(function: Any, x: Any) -> None:
        try:
            function(x)
        except RuntimeError as error:
            raise Unavailable(str(error).strip().splitlines()[-1]) from error
