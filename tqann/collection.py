"""The vectors of an index: their codes, scalars and ids, changed together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tqcore import scan
from tqcore.quantizer import Quantizer

from .arguments import check_vectors
from .id_map import IdMap
from .storage import CodeStorage, removal_moves

__all__ = ["Collection", "collection_on"]

_CHUNK_ROWS = 16384


class Collection:
    """Encoded vectors by position, each under an id. Arguments are checked by the callers.

    Parameters
    ----------
    quantizer : Quantizer
    storage : CodeStorage, optional
        By default empty.
    id_map : IdMap, optional
        Of as many vectors as `storage` holds.
    """

    device = "cpu"
    finer: Quantizer | None = None  # of a second code, which results are ordered by

    def __init__(
        self, quantizer: Quantizer, storage: CodeStorage | None = None, id_map: IdMap | None = None
    ) -> None:
        self.quantizer = quantizer
        self.storage = storage or CodeStorage(
            quantizer.code_size, quantizer.n_scalars, quantizer.core.head_size
        )
        self.id_map = id_map or IdMap()
        self._rows: scan.Rows | None = None  # of the vectors as they are

    def __len__(self) -> int:
        return self.storage.n

    def __bool__(self) -> bool:
        return True

    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.storage.nbytes() + self.id_map.nbytes()

    @property
    def code_size(self) -> int:
        """Bytes of packed code of a vector."""
        return self.quantizer.code_size

    @property
    def n_scalars(self) -> int:
        """float32 scalars of a vector."""
        return self.quantizer.n_scalars

    @property
    def refine_factor(self) -> int | None:
        """Candidates for each result; None without a finer code."""
        return None

    def set_refine_factor(self, factor: int) -> None:
        """Take `factor` candidates for each result; ValueError without a finer code."""
        raise ValueError(f"refine_factor needs an index made with refine_bits, got {factor} for one without")

    def parts(self) -> list[tuple[Quantizer, CodeStorage]]:
        """Return each quantizer and what it made."""
        return [(self.quantizer, self.storage)]

    def config(self) -> dict[str, Any]:
        """Return the configuration of the quantizer, and the rate of the finer one if there is one."""
        return self.quantizer.config() | ({"refine_bits": self.finer.bits} if self.finer else {})

    def same_as(self, other: Collection) -> bool:
        """Whether both make the same codes of a vector."""
        mine, theirs = self.finer, other.finer
        finer = mine is theirs is None or bool(mine and theirs and mine.same_as(theirs))
        return finer and self.quantizer.same_as(other.quantizer)

    def replanned(self, plan: Callable[[Quantizer], Quantizer]) -> Collection:
        """Return an empty collection, with the ids of this one, whose quantizer is what `plan` returns for its own."""
        return self.fresh(plan(self.quantizer), self.id_map)

    def encode(self, vectors: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Return codes uint8 [m, code_size] and scalars float32 [m, n_scalars]."""
        return self.quantizer.encode(vectors, threads=threads)

    def decode_rows(self, codes: np.ndarray, scalars: np.ndarray) -> np.ndarray:
        """Return the vectors, float32 [m, d], of codes and scalars as from `encode`."""
        return self.quantizer.decode(codes, scalars)

    def fresh(self, quantizer: Quantizer, id_map: IdMap | None = None) -> Collection:
        """Return an empty collection on the same device."""
        return Collection(quantizer, id_map=id_map)

    def check(self, x: Any, name: str) -> Any:
        """Return vectors `x` as float32 [n, d], or refuse them under `name`."""
        return check_vectors(x, name, self.quantizer.d)

    def check_queries(self, x: Any, name: str) -> Any:
        """Return queries as `check` does."""
        return check_vectors(x, name, self.quantizer.d)

    def host(self, x: Any) -> np.ndarray:
        """Return checked vectors as a NumPy array."""
        return x

    def like(self, values: np.ndarray, x: Any) -> Any:  # noqa: ARG002
        """Return `values` in the kind of array that `x` is."""
        return values

    def copy(self) -> Collection:
        """Return an independent collection."""
        return Collection(self.quantizer, self.storage.copy(), self.id_map.copy())

    def add(self, vectors: np.ndarray, ids: np.ndarray | None, threads: int) -> None:
        """Encode float32 [m, d] and append under `ids`, int64 [m], or under the next positions for None."""
        if len(vectors) <= _CHUNK_ROWS:
            self.add_codes(*self.encode(vectors, threads), ids)
            return
        encoded = (
            self.encode(vectors[first : first + _CHUNK_ROWS], threads)
            for first in range(0, len(vectors), _CHUNK_ROWS)
        )
        self._append(len(vectors), encoded, ids)

    def add_codes(self, codes: np.ndarray, scalars: np.ndarray, ids: np.ndarray | None) -> None:
        """Append uint8 [m, code_size] and float32 [m, n_scalars]; ids as for `add`."""
        self._append(len(codes), iter(((codes, scalars),)), ids)

    def add_collection(self, other: Collection, ids: np.ndarray | None) -> None:
        """Append the vectors of a collection with the same quantizer; ids as for `add`."""
        parts = (
            slice(first, min(first + _CHUNK_ROWS, len(other))) for first in range(0, len(other), _CHUNK_ROWS)
        )
        self._append(len(other), ((other.storage.rows(p), other.storage.scalars_at(p)) for p in parts), ids)

    def take_rows(self, other: Collection) -> None:
        """Fill an empty collection, whose id map is that of `other` already, with the codes of `other`."""
        id_map, self.id_map = self.id_map, IdMap()
        self.add_collection(other, None)
        self.id_map = id_map

    def remove(self, positions: np.ndarray) -> None:
        """Remove sorted unique `positions`; the last vectors move into the gaps."""
        if not len(positions):
            return
        self._rows = None
        holes, movers = removal_moves(len(self), positions)
        self.storage.remove(holes, movers, len(self) - len(positions))
        self.id_map.remove(positions, holes, movers)

    def positions(self, ids: np.ndarray, name: str) -> np.ndarray:
        """Return the positions of `ids`, int64 [m]; IndexError names an id that is not present."""
        positions = self.id_map.find(ids)
        if len(positions) and positions.min() < 0:
            unknown = ids[int(np.argmin(positions))]
            raise IndexError(f"{name} must be in the index, but the id {unknown} is not")
        return positions

    def decode(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at `positions` as float32 [m, d]."""
        return self.quantizer.decode(self.storage.rows(positions), self.storage.scalars_at(positions))

    def search(
        self, queries: np.ndarray, k: int, metric: str, **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return D and I of `scan.search`; options are mask, threads and deviations."""
        return self._searched(metric).search(queries, k, **options)

    def range_search(
        self, queries: np.ndarray, radius: float, metric: str, **options: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return lims, D and I of `scan.range_search`, which knows no deviations; options as for `search`."""
        options.pop("deviations", None)
        return self._searched(metric).range_search(queries, radius, **options)

    def _searched(self, metric: str) -> scan.Rows:
        # Made anew after a change only: it takes some microseconds.
        if self._rows is None:
            storage = self.storage
            self._rows = scan.Rows(
                self.quantizer,
                storage.codes,
                storage.scalars,
                metric=metric,
                tails=storage.tails,
                **self._range(),
            )
        return self._rows

    def _range(self) -> dict[str, Any]:
        return {"n": len(self), "ids": self.id_map.stored}

    def _append(
        self, count: int, encoded: Iterator[tuple[np.ndarray, np.ndarray]], ids: np.ndarray | None
    ) -> None:
        self._rows = None  # it holds arrays that grow
        start = len(self)
        self.storage.reserve(start + count)
        for codes, scalars in encoded:
            self.storage.write(start, codes, scalars)
            start += len(codes)
        # Only now do the rows written count: an error before this point leaves everything as it was.
        self.id_map.append(count, ids)
        self.storage.n = start


def collection_on(
    device: str, quantizer: Quantizer, id_map: IdMap | None = None, refine_bits: Any = None
) -> Collection:
    """Return an empty collection on "cpu" or a CUDA device, with a finer code beside the first for `refine_bits`."""
    if refine_bits is not None:
        from .refinement import RefinedCollection, refinement_of

        finer = refinement_of(quantizer, refine_bits)
        if device != "cpu":
            raise ValueError(f'refine_bits needs device="cpu", got device={device!r}')
        return RefinedCollection(quantizer, finer, id_map=id_map)
    if device == "cpu":
        return Collection(quantizer, id_map=id_map)
    from .cuda import DeviceCollection

    return DeviceCollection(quantizer, device, id_map)
