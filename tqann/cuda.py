"""The vectors of an index on a CUDA device: codes there, ids on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tqcore.quantizer import Quantizer

from .arguments import check_vectors
from .collection import Collection
from .id_map import IdMap
from .storage import removal_moves

__all__ = ["DeviceCollection"]

_CHUNK_ROWS = 1 << 20


class _Rows:
    """Codes and scalars of a device store as `storage.CodeStorage` hands them out, copied to the host."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @property
    def n(self) -> int:
        return self._store.n

    def rows(self, positions: np.ndarray | slice) -> np.ndarray:
        return self._store.rows(_listed(positions))[0]

    def scalars_at(self, positions: np.ndarray | slice) -> np.ndarray:
        return self._store.rows(_listed(positions))[1]


def _listed(positions: np.ndarray | slice) -> np.ndarray:
    if isinstance(positions, slice):
        return np.arange(positions.start or 0, positions.stop, dtype=np.int64)
    return np.ascontiguousarray(positions, dtype=np.int64)


class DeviceCollection(Collection):
    """A `Collection` whose codes lie on a CUDA device.

    Vectors and queries are NumPy arrays or tensors of the device; results come as the queries came.

    Parameters
    ----------
    quantizer : Quantizer
    device : str
        "cuda" or "cuda:i".
    id_map : IdMap, optional
    store : tqcore.gpu.store.DeviceStore, optional
        By default empty.

    Raises
    ------
    ImportError
        Without torch.
    RuntimeError
        Without a CUDA device.
    ValueError
        For a code that the device does not search.
    """

    def __init__(
        self, quantizer: Quantizer, device: str, id_map: IdMap | None = None, store: Any = None
    ) -> None:
        try:
            from tqcore.gpu import store as stores
        except ImportError as error:
            raise ImportError(
                f'device {device!r} needs torch, triton and cuda-bindings: pip install "tqann[gpu]" ({error})'
            ) from error
        self._is_tensor = stores.is_cuda_tensor
        self._store = store or stores.DeviceStore(quantizer, stores.cuda_device(device))
        self.device = str(self._store.device)
        self.quantizer = quantizer
        self.storage = _Rows(self._store)  # pyright: ignore[reportAttributeAccessIssue]
        self.id_map = id_map or IdMap()
        self._ids: Any = None

    def fresh(self, quantizer: Quantizer, id_map: IdMap | None = None) -> DeviceCollection:
        """Return an empty collection on the same device."""
        return DeviceCollection(quantizer, self.device, id_map)

    def check(self, x: Any, name: str) -> Any:
        """Return `x` as a float32 tensor of the device if it is a CUDA tensor, else as a NumPy array [n, d]."""
        if self._is_tensor(x):
            return self._store.check(x, name, self.quantizer.d)
        return check_vectors(x, name, self.quantizer.d)

    def check_queries(self, x: Any, name: str) -> Any:
        """Return queries as `check` does; the search refuses tensors that are not finite when it has run."""
        # Vectors brought to length 1 would hide a norm beyond float32.
        if self._is_tensor(x) and not self.quantizer.normalize:
            return self._store.check_shape(x, name, self.quantizer.d)
        return self.check(x, name)

    def host(self, x: Any) -> np.ndarray:
        """Return a checked array, or a tensor's values, as a NumPy array."""
        return x.cpu().numpy() if self._is_tensor(x) else x

    def like(self, values: np.ndarray, x: Any) -> Any:
        """Return `values` as a tensor of the device if `x` is one."""
        return self._store.upload(values) if self._is_tensor(x) else values

    def nbytes(self) -> int:
        """Bytes held, on the device and, for ids, on the host."""
        return self._store.nbytes() + self.id_map.nbytes()

    def copy(self) -> DeviceCollection:
        """Return an independent collection."""
        return DeviceCollection(self.quantizer, self.device, self.id_map.copy(), self._store.copy())

    def add(self, vectors: Any, ids: np.ndarray | None, threads: int) -> None:  # noqa: ARG002
        """Encode float32 [m, d] and append under `ids`, int64 [m], or under the next positions for None."""
        start = len(self)
        self._store.reserve(start + len(vectors))
        self._store.add(start, vectors)
        self._count(len(vectors), ids)

    def remove(self, positions: np.ndarray) -> None:
        """Remove sorted unique `positions`; the last vectors move into the gaps."""
        if not len(positions):
            return
        holes, movers = removal_moves(len(self), positions)
        self._store.move(holes, movers, len(self) - len(positions))
        self.id_map.remove(positions, holes, movers)
        self._ids = None

    def decode(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at `positions` as float32 [m, d] on the host."""
        return self._store.decode(_listed(positions))

    def search(self, queries: Any, k: int, metric: str, **options: Any) -> tuple[Any, Any]:
        """Return D and I, padded where fewer than k vectors are left."""
        return self._store.search(queries, k, metric, options["mask"], self._device_ids())

    def range_search(self, queries: Any, radius: float, metric: str, **options: Any) -> tuple[Any, Any, Any]:
        """Return lims, D and I."""
        return self._store.range_search(queries, radius, metric, options["mask"], self._device_ids())

    def _device_ids(self) -> Any:
        if self.id_map.stored is not None and self._ids is None:
            self._ids = self._store.upload(self.id_map.stored)
        return self._ids

    def _append(
        self, count: int, encoded: Iterator[tuple[np.ndarray, np.ndarray]], ids: np.ndarray | None
    ) -> None:
        start = len(self)
        self._store.reserve(start + count)
        for codes, scalars in encoded:
            self._store.write(start, codes, scalars)
            start += len(codes)
        self._count(count, ids)

    def _count(self, count: int, ids: np.ndarray | None) -> None:
        self.id_map.append(count, ids)
        self._store.n += count
        self._ids = None
