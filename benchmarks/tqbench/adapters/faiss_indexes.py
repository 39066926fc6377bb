"""FAISS's flat indexes under test, each as its authors would run it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import Unavailable
from .base import require

__all__ = ["FaissIndex", "subspaces"]


def subspaces(d: int, bits: float, nbits: tuple[int, ...] = (8, 7, 6, 5, 4)) -> tuple[int, int]:
    """(M, nbits) of a product quantizer that spends exactly `bits` per dimension, the largest nbits first.

    Raises
    ------
    Unavailable
        When no equal split of `d` dimensions gives that rate.
    """
    for size in nbits:
        width = size / bits
        if width == int(width) and d % int(width) == 0:
            return d // int(width), size
    raise Unavailable(f"no equal split of d = {d} with codes of at most {nbits[0]} bits spends {bits:g} bits")


class FaissIndex:
    """A FAISS index; cosine is inner product of vectors that the harness has normalised."""

    threads_can_change = True

    def __init__(self, d: int, bits: float, metric: str, *, kind: str, rotate: bool = False) -> None:
        self.faiss, self.rotated = require("faiss", "faiss-cpu"), rotate
        number = self.faiss.METRIC_L2 if metric == "l2" else self.faiss.METRIC_INNER_PRODUCT
        try:
            self.index = _BUILDERS[kind](self.faiss, d, bits, number)
            if rotate:
                self.index = self.faiss.IndexPreTransform(_rotation(self.faiss, d), self.index)
        except (RuntimeError, AttributeError) as error:
            raise Unavailable(_reason(error)) from error

    def train(self, x: np.ndarray) -> None:
        """Train with FAISS's own settings; the rotation, which learns nothing, was made before."""
        if self.rotated:
            inner = self.faiss.downcast_index(self.index.index)
            self._checked(inner.train, self.index.chain.at(0).apply(x))
            self.index.is_trained = inner.is_trained
        else:
            self._checked(self.index.train, x)

    def add(self, x: np.ndarray) -> None:
        """Append vectors."""
        self._checked(self.index.add, x)

    def search(self, q: np.ndarray, k: int) -> np.ndarray:
        """Ids [nq, k]."""
        return self.index.search(q, k)[1]

    def set_threads(self, n: int) -> None:
        """Threads of OpenMP."""
        self.faiss.omp_set_num_threads(n)

    def bytes_per_vector(self, n: int) -> float:  # noqa: ARG002
        """FAISS's code_size, which holds its per-vector factors; ids of a flat index are positions."""
        pretransformed = isinstance(self.index, self.faiss.IndexPreTransform)
        inner = self.faiss.downcast_index(self.index.index) if pretransformed else self.index
        return float(inner.code_size)

    def trained(self) -> bytes:
        """The index, trained and still empty, as bytes."""
        return self.faiss.serialize_index(self.index).tobytes()

    def take_trained(self, data: bytes) -> None:
        """Take over what `trained` gave."""
        self.index = self.faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))

    def _checked(self, function: Callable[[np.ndarray], None], x: np.ndarray) -> None:
        try:
            function(x)
        except RuntimeError as error:
            raise Unavailable(_reason(error)) from error


@lru_cache(maxsize=8)
def _rotation(faiss: Any, d: int) -> Any:
    """FAISS's random rotation: the same matrix whoever asks."""
    rotation = faiss.RandomRotationMatrix(d, d)
    rotation.init(12345)  # the seed of its own train()
    return rotation


def _reason(error: Exception) -> str:
    return str(error).rsplit("Error: ", 1)[-1].strip().splitlines()[0]


def _scalar(faiss: Any, d: int, name: str, metric: int) -> Any:
    kind = getattr(faiss.ScalarQuantizer, name, None)
    if kind is None:
        raise Unavailable(f"this faiss has no {name}")
    return faiss.IndexScalarQuantizer(d, kind, metric)


def _product(faiss: Any, d: int, bits: float, metric: int) -> Any:
    m, nbits = subspaces(d, bits)
    index = faiss.IndexPQ(d, m, nbits, metric)
    index.pq.cp.min_points_per_centroid = 1  # silences a warning for small sets; changes nothing else
    return index


def _rotated_product(faiss: Any, d: int, bits: float, metric: int) -> Any:
    m, _ = subspaces(d, bits)
    rotation = faiss.OPQMatrix(d, m)
    # The product quantizer that OPQMatrix would make for itself, less its warnings about small sets.
    inner = faiss.ProductQuantizer(d, m, 8)
    inner.cp.min_points_per_centroid = 1
    rotation.pq = inner
    rotation.inner = inner  # keeps it alive
    return faiss.IndexPreTransform(rotation, _product(faiss, d, bits, metric))


def _fast_product(faiss: Any, d: int, bits: float, metric: int) -> Any:
    m, _ = subspaces(d, bits, (4,))
    return faiss.IndexPQFastScan(d, m, 4, metric)


_BUILDERS: dict[str, Callable[[Any, int, float, int], Any]] = {
    "flat": lambda faiss, d, _, metric: faiss.IndexFlat(d, metric),
    "sq": lambda faiss, d, bits, metric: _scalar(faiss, d, f"QT_{bits:g}bit", metric),
    "sqtqmse": lambda faiss, d, bits, metric: _scalar(faiss, d, f"QT_{bits:g}bit_tqmse", metric),
    "sqtq": lambda faiss, d, bits, metric: _scalar(faiss, d, f"QT_{bits:g}bit_tq", metric),
    "eden": lambda faiss, d, bits, metric: faiss.index_factory(d, f"EDEN{bits:g}", metric),
    "rabitq": lambda faiss, d, bits, metric: faiss.index_factory(d, f"RaBitQ{bits:g}", metric),
    "rabitq-fs": lambda faiss, d, bits, metric: faiss.index_factory(d, f"RaBitQfs{bits:g}", metric),
    "pq": _product,
    "opq": _rotated_product,
    "pq-fs": _fast_product,
}
