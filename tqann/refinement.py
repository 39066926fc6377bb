"""Vectors under two codes: a small one that finds candidates, and a finer one that orders them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tqcore import scan
from tqcore.quantizer import Quantizer

from .collection import Collection
from .id_map import IdMap
from .storage import CodeStorage

__all__ = ["PairedStorage", "RefinedCollection", "refinement_of"]


def refinement_of(quantizer: Quantizer, bits: Any) -> Quantizer:
    """Return the finer quantizer of `bits` beside `quantizer`, equal to it in all but the rate and the plan.

    Raises ValueError for a code other than "chain" and for a rate that is not above the first one.
    """
    if quantizer.code != "chain":
        raise ValueError(f'refine_bits needs code="chain", got code={quantizer.code!r}')
    options = quantizer.config()
    del options["tables"], options["plan"]
    try:
        finer = Quantizer(**options | {"bits": bits})
    except ValueError as error:
        raise ValueError(f"refine_{error}") from error
    if finer.bits <= quantizer.bits:
        raise ValueError(f"refine_bits must be above bits = {quantizer.bits:g}, got {bits!r}")
    return finer


class PairedStorage:
    """Two `CodeStorage` of the same vectors as one, whose rows are those of both side by side.

    Parameters
    ----------
    first, second : CodeStorage
        Of equally many vectors.
    """

    def __init__(self, first: CodeStorage, second: CodeStorage) -> None:
        self.first, self.second = first, second

    @property
    def n(self) -> int:
        """Number of vectors held."""
        return self.first.n

    @n.setter
    def n(self, n: int) -> None:
        self.first.n = self.second.n = n

    def nbytes(self) -> int:
        """Bytes of memory held by both."""
        return self.first.nbytes() + self.second.nbytes()

    def rows(self, positions: np.ndarray | slice) -> np.ndarray:
        """Return the codes at `positions`, uint8 [m, both code sizes]."""
        return np.concatenate([self.first.rows(positions), self.second.rows(positions)], axis=1)

    def scalars_at(self, positions: np.ndarray | slice) -> np.ndarray:
        """Return the scalars at `positions`, float32 [m, both counts]."""
        return np.concatenate([self.first.scalars_at(positions), self.second.scalars_at(positions)], axis=1)

    def reserve(self, needed: int) -> None:
        """Make room for `needed` rows; the vectors held do not change."""
        self.first.reserve(needed)
        self.second.reserve(needed)

    def write(self, start: int, codes: np.ndarray, scalars: np.ndarray) -> None:
        """Put rows as `rows` and `scalars_at` give them at reserved places from `start` on."""
        size, count = self.first.code_size, len(self.first.scalars)
        self.first.write(start, np.ascontiguousarray(codes[:, :size]), scalars[:, :count])
        self.second.write(start, np.ascontiguousarray(codes[:, size:]), scalars[:, count:])

    def remove(self, holes: np.ndarray, movers: np.ndarray, n: int) -> None:
        """Move the rows `movers` into `holes` and keep the first `n`."""
        self.first.remove(holes, movers, n)
        self.second.remove(holes, movers, n)

    def copy(self) -> PairedStorage:
        """Return an independent storage."""
        return PairedStorage(self.first.copy(), self.second.copy())


class RefinedCollection(Collection):
    """A `Collection` that keeps a finer code beside the first, and answers by it.

    Parameters
    ----------
    quantizer, finer : Quantizer
        Of the code that finds candidates and of the one that orders them; see `refinement_of`.
    storage : PairedStorage, optional
        By default empty.
    id_map : IdMap, optional
        Of as many vectors as `storage` holds.
    refine_factor : int
        Candidates for each result.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        finer: Quantizer,
        storage: PairedStorage | None = None,
        id_map: IdMap | None = None,
        refine_factor: int = 10,
    ) -> None:
        self.quantizer, self.finer = quantizer, finer
        self._finer = finer
        self._pair = storage or PairedStorage(
            *(CodeStorage(q.code_size, q.n_scalars) for q in (quantizer, finer))
        )
        self.storage = self._pair  # pyright: ignore[reportAttributeAccessIssue]
        self.id_map = id_map or IdMap()
        self._refine_factor = refine_factor

    @property
    def refine_factor(self) -> int:
        """Candidates for each result."""
        return self._refine_factor

    def set_refine_factor(self, factor: int) -> None:
        """Take `factor` candidates for each result from now on."""
        self._refine_factor = factor

    @property
    def code_size(self) -> int:
        """Bytes of both packed codes."""
        return self.quantizer.code_size + self._finer.code_size

    @property
    def n_scalars(self) -> int:
        """float32 scalars beside both codes."""
        return self.quantizer.n_scalars + self._finer.n_scalars

    def parts(self) -> list[tuple[Quantizer, CodeStorage]]:
        """Return both quantizers and what they made, the first code first."""
        return [(self.quantizer, self._pair.first), (self._finer, self._pair.second)]

    def fresh(self, quantizer: Quantizer, id_map: IdMap | None = None) -> RefinedCollection:
        """Return an empty collection with `quantizer` and the same finer one."""
        return RefinedCollection(quantizer, self._finer, id_map=id_map, refine_factor=self._refine_factor)

    def replanned(self, plan: Callable[[Quantizer], Quantizer]) -> RefinedCollection:
        """Return an empty collection, with the ids of this one, whose quantizers are those that `plan` returns."""
        quantizer, finer = plan(self.quantizer), plan(self._finer)
        return RefinedCollection(quantizer, finer, id_map=self.id_map, refine_factor=self._refine_factor)

    def copy(self) -> RefinedCollection:
        """Return an independent collection."""
        storage, id_map = self._pair.copy(), self.id_map.copy()
        return RefinedCollection(self.quantizer, self._finer, storage, id_map, self._refine_factor)

    def encode(self, vectors: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Return codes uint8 [m, code_size] and scalars float32 [m, n_scalars], those of the first code first."""
        encoded = [q.encode(vectors, threads=threads) for q in (self.quantizer, self._finer)]
        codes, scalars = (np.concatenate(both, axis=1) for both in zip(*encoded, strict=True))
        return codes, scalars

    def decode_rows(self, codes: np.ndarray, scalars: np.ndarray) -> np.ndarray:
        """Return the vectors, float32 [m, d], that the finer halves of codes and scalars stand for."""
        first = self.quantizer
        return self._finer.decode(codes[:, first.code_size :], scalars[:, first.n_scalars :])

    def decode(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at `positions` by their finer codes, float32 [m, d]."""
        second = self._pair.second
        return self._finer.decode(second.rows(positions), second.scalars_at(positions))

    def search(
        self, queries: np.ndarray, k: int, metric: str, **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return D and I: the k best by the finer code of `refine_factor` k candidates by the first one.

        Options are mask, threads and refine_factor (None for that of the collection).
        """
        factor = options.pop("refine_factor", None) or self._refine_factor
        first = self._pair.first
        candidates = scan.search(
            self.quantizer,
            first.codes,
            first.scalars,
            queries,
            max(1, min(factor * k, len(self))),
            positions=True,
            metric=metric,
            **self._range(),
            **options,
        )[1]
        del options["mask"]  # candidates have passed it
        return scan.rescore(
            *self._finer_codes(), queries, candidates, k, metric=metric, **self._range(), **options
        )

    def range_search(
        self, queries: np.ndarray, radius: float, metric: str, **options: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return lims, D and I of a scan of the finer code alone."""
        options.pop("refine_factor", None)
        return scan.range_search(
            *self._finer_codes(), queries, radius, metric=metric, **self._range(), **options
        )

    def _finer_codes(self) -> tuple[Quantizer, np.ndarray, np.ndarray]:
        return self._finer, self._pair.second.codes, self._pair.second.scalars
