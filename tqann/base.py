"""What an index is, and how it is kept: its state, its description, copies and files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tqcore.plan import Plan
from tqcore.quantizer import Quantizer

from .arguments import check_device, check_integer
from .collection import Collection, collection_on
from .id_map import IdMap
from .planning import Planner

if TYPE_CHECKING:
    from typing_extensions import Self

    from .index import TurboQuantIndex
    from .sync import Attachment

__all__ = ["METRIC_INNER_PRODUCT", "METRIC_L2", "IndexBase"]

METRIC_INNER_PRODUCT = 0
METRIC_L2 = 1


class IndexBase:
    """State and description of `TurboQuantIndex`, which adds what is done with vectors."""

    threads: int
    _attached: Attachment | None  # the file that `sync` appends to

    def _assemble(self, vectors: Collection, metric: str, planner: Planner, threads: int) -> None:
        self._vectors = vectors
        self._planner = planner
        self._metric = metric
        self.threads = threads
        self._attached = None

    @classmethod
    def _from_collection(cls, vectors: Collection, metric: str, planner: Planner, threads: int = 0) -> Self:
        index = cls.__new__(cls)
        index._assemble(vectors, metric, planner, threads)
        return index

    @property
    def d(self) -> int:
        """Dimensions of a vector."""
        return self.quantizer.d

    @property
    def device(self) -> str:
        """Where the codes lie: "cpu", or "cuda:0" and so on."""
        return self._vectors.device

    @property
    def bits(self) -> float:
        """Bits per dimension, without scalars."""
        return self.quantizer.bits

    @property
    def refine_bits(self) -> float | None:
        """Bits per dimension of the finer code; None without one."""
        return self._vectors.finer.bits if self._vectors.finer else None

    @property
    def refine_factor(self) -> int | None:
        """Candidates by the first code for each result of `search`, 10 unless set; None without a finer code."""
        return self._vectors.refine_factor

    @refine_factor.setter
    def refine_factor(self, factor: int) -> None:
        self._vectors.set_refine_factor(check_integer(factor, "refine_factor", 1))

    @property
    def ntotal(self) -> int:
        """Number of vectors held."""
        return len(self._vectors)

    @property
    def is_trained(self) -> bool:
        """Always true: the code depends on no data."""
        return True

    @property
    def metric(self) -> str:
        """The metric by name: "l2", "ip" or "cosine"."""
        return self._metric

    @property
    def metric_type(self) -> int:
        """FAISS's constant: METRIC_L2, or METRIC_INNER_PRODUCT for "ip" and "cosine"."""
        return METRIC_L2 if self._metric == "l2" else METRIC_INNER_PRODUCT

    @property
    def code_size(self) -> int:
        """Bytes per vector, the float32 scalars beside the packed code included."""
        return self._vectors.code_size + 4 * self._vectors.n_scalars

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer between vectors and codes; its configuration must not be changed."""
        return self._vectors.quantizer

    @property
    def plan(self) -> Plan | None:
        """The calibrated plan in use; None while the code is oblivious."""
        return self.quantizer.plan

    @property
    def drift(self) -> float:
        """How well the plan fits what was added: its expected squared error over the oblivious code's.

        Below 1 the plan helps; above 1 it does harm, and a batch of such vectors raises a `DriftWarning`, once. NaN
        without a plan. One vector in 16 is looked at.
        """
        return self._planner.drift

    @property
    def ids(self) -> np.ndarray:
        """The ids in storage order, a new int64 [ntotal]."""
        return self._id_map.array()

    def nbytes(self) -> int:
        """Bytes of memory that vectors and ids take, spare capacity included and a mapped file not."""
        return self._vectors.nbytes()

    def __len__(self) -> int:
        return self.ntotal

    def __repr__(self) -> str:
        refined = f", refine_bits={self.refine_bits:g}" if self.refine_bits else ""
        return (
            f"TurboQuantIndex(d={self.d}, bits={self.bits:g}, metric={self._metric!r}, "
            f"code={self.quantizer.code!r}{refined}, ntotal={self.ntotal}, code_size={self.code_size})"
        )

    def copy(self) -> Self:
        """Return an independent index with the same contents."""
        return self._from_collection(self._vectors.copy(), self._metric, self._planner.copy(), self.threads)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def to(self, device: str) -> Self:
        """Return the index on `device`, "cpu" or "cuda"; itself where it is there already, else an independent one."""
        check_device(device)
        if device in (self.device, self.device.partition(":")[0]):
            return self
        vectors = collection_on(device, self.quantizer, self._id_map.copy(), self.refine_bits)
        vectors.take_rows(self._vectors)
        return self._from_collection(vectors, self._metric, self._planner.copy(), self.threads)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file; see `write_index`."""
        from .io import write_index

        write_index(self, path)  # pyright: ignore[reportArgumentType]

    def sync(self, path: str | os.PathLike[str], compact: bool | None = None) -> None:
        """Bring the file at `path` up to date and on the disk; when this returns, a crash cannot undo it.

        The first sync writes the file, whole and atomically. Later ones, of this index or of one loaded from the file,
        append what has changed since (vectors added, a row for each one removed) and wait for the disk once, so they
        cost time by the size of the change. Whatever happens on the way, the file opens as of the last sync that
        returned, or of the one that was interrupted if that was complete. To `read_index` and `load` the file is like
        any other; memory mapping it gains nothing while it holds appended changes.

        Parameters
        ----------
        path : path-like
            A file that this index was not synced with or loaded from is replaced.
        compact : bool, optional
            Whether to write a new file instead of appending. By default this is done as soon as more than half of the
            file would be overwritten rows.

        Raises
        ------
        ConcurrentWriterError
            Where another writer holds the file's lock, or has changed the file since this index wrote or read it;
            load it again, or `save` to replace it.
        DiskFullError, ReadOnlyPathError, OSError
            Where the file cannot be written. It then holds what it held, and the index can be synced again.
        """
        from .sync import sync_index

        sync_index(self, path, compact)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mmap: bool = False) -> TurboQuantIndex:
        """Read an index from a file; see `read_index`."""
        from .io import read_index

        return read_index(path, mmap=mmap)

    @property
    def _id_map(self) -> IdMap:
        return self._vectors.id_map
