"""TurboQuantIndex: FAISS's Index over codes that need no training."""

from __future__ import annotations

from typing import Any

import numpy as np

from tqcore.config import MAX_D
from tqcore.quantizer import Quantizer

from .arguments import (
    check_codes,
    check_device,
    check_ids,
    check_integer,
    check_metric,
    check_radius,
    check_vectors,
)
from .base import METRIC_INNER_PRODUCT, METRIC_L2, IndexBase
from .collection import collection_on
from .filters import allowed_bits, find_positions, search_parameters
from .format import quantizer_options
from .guard import guarded
from .planning import PLANS, Planner

__all__ = ["METRIC_INNER_PRODUCT", "METRIC_L2", "TurboQuantIndex"]


@guarded(
    reads="search range_search search_and_reconstruct assign reconstruct reconstruct_n reconstruct_batch ids nbytes "
    "copy __copy__ __deepcopy__ to",
    changes="add add_with_ids add_sa_codes remove_ids reset merge_from calibrate sync",
)
class TurboQuantIndex(IndexBase):
    """A flat index of compressed vectors with the methods, shapes and conventions of `faiss.Index`.

    Vectors are float arrays [n, d]; integers are refused, as FAISS refuses them. Ids are int64, unique and
    stable: removing a vector changes no other id, and an id that `add` has given is not given again. Where
    FAISS's flat indexes renumber on removal and its id maps take an id twice, this one does neither. Every
    error is raised before anything changes. Threads may share an index: searches and other reads run side by side,
    a change (add, remove, merge, sync, ...) waits for those under way and runs alone.

    Parameters
    ----------
    d : int
        Dimensions, 8 to 65536.
    bits : float
        Bits per dimension: any number from 0.5 to 8 for "chain", of which 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6 and 8
        are rates of their own and others a mixture of two (``bits=2 - 32 / d`` makes a vector, its scale included, as
        large as two bits a dimension); any number from 3 to 8 for "layered"; 1, 2, ... 8 for "mse" and
        "prod".
    metric : str or int
        "l2" (squared Euclidean distance, smallest first), "ip" (inner product, largest first), "cosine"
        (inner product of normalised vectors), or FAISS's constant for one of the first two.
    code, memory, rotation, seed, scale, sketch
        How vectors become codes; see `tqcore.quantizer.Quantizer`. With metric "cosine", scale "none" stores no scale
        beside a code, and a vector of zeros cannot be added. A search of a "layered" code reads about half of
        it, and all of those vectors that can still be among the best; `SearchParameters.deviations` says how sure.
    plan : str
        "oblivious": the code depends on no data. "calibrated": the first batch added (or `calibrate`) gives mean and
        second moments, and bits go where they save most. "auto": the same if the first batch is large enough for it
        (`tqann.planning.auto_rows`: d / 2 vectors and at least 200), oblivious otherwise. For "chain" codes.
    refine_bits : float, optional
        Bits of a second, finer "chain" code of every vector, above `bits`. `search` then takes `refine_factor` times k
        candidates by the first code and orders them by the second, by which distances, `range_search` and
        reconstructions go. For device "cpu".
    device : str
        "cpu", or "cuda" ("cuda:1", ...) for "chain" codes of one rate with the Hadamard rotation: codes then lie on
        the device, CUDA tensors are taken there and searched without a copy to the host, and their results are tensors.
    threads : int
        Threads for encoding and searching; 0 takes TQ_THREADS or all cores.

    Raises
    ------
    TypeError, ValueError
        For an argument outside these rules; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from tqann import TurboQuantIndex
    >>> xb = np.random.default_rng(0).standard_normal((1000, 64), dtype=np.float32)
    >>> index = TurboQuantIndex(64, bits=4)
    >>> index.add(xb)
    >>> D, I = index.search(xb[:3], 5)
    >>> I[:, 0].tolist()
    [0, 1, 2]
    >>> index.remove_ids([1])
    1
    >>> index
    TurboQuantIndex(d=64, bits=4, metric='l2', code='chain', ntotal=999, code_size=40)
    """

    def __init__(
        self,
        d: int,
        bits: float = 4,
        metric: str | int = "l2",
        *,
        code: str = "chain",
        memory: int = 2,
        rotation: str = "hadamard",
        seed: int = 0,
        scale: str | None = None,
        sketch: str = "orthogonal",
        plan: str = "oblivious",
        refine_bits: float | None = None,
        device: str = "cpu",
        threads: int = 0,
    ) -> None:
        d = check_integer(d, "d", 8, MAX_D)
        metric = check_metric(metric)
        threads = check_integer(threads, "threads", 0)
        check_device(device)
        if plan not in PLANS:
            raise ValueError(f"plan must be one of {', '.join(map(repr, PLANS))}, got {plan!r}")
        needs = quantizer_options(metric)
        quantizer = Quantizer(
            d,
            bits,
            code,
            memory=memory,
            rotation=rotation,
            seed=seed,
            scale=scale,
            sketch=sketch,
            store_norm=needs["store_norm"],
            normalize=needs["normalize"],
        )
        if plan != "oblivious":
            quantizer.check_plannable()
        self._assemble(
            collection_on(device, quantizer, refine_bits=refine_bits), metric, Planner(plan), threads
        )

    def train(self, x: Any) -> None:
        """Check `x` [n, d] and do nothing: there is nothing to train."""
        self._vectors.check(x, "x")

    def calibrate(self, sample: Any, queries: Any = None) -> None:
        """Fix the plan from a sample of the vectors to come, [n, d] with n >= 2, before the first one is added.

        With `queries` [m, d] like those to come, the expected error of their inner products is minimised. One pass
        over the sample, no iterations; more than 65,536 rows are thinned out evenly. Raises RuntimeError once the
        index holds vectors.
        """
        if self.ntotal:
            raise RuntimeError(
                f"calibrate must come before the first add; the index holds {self.ntotal} vectors"
            )
        vectors = self._vectors.host(self._vectors.check(sample, "sample"))
        if len(vectors) < 2:
            raise ValueError(f"sample must have at least 2 vectors, got {len(vectors)}")
        asked = None if queries is None else self._vectors.host(self._vectors.check(queries, "queries"))
        if asked is not None and not len(asked):
            raise ValueError("queries must have at least 1 vector, got none")
        self.quantizer.check_plannable()
        self._replan(vectors, asked)

    def add(self, x: Any) -> None:
        """Add vectors [n, d] under the next ids: 0, 1, 2, ..., past every id ever in the index."""
        vectors = self._vectors.check(x, "x")
        self._add(vectors, self._id_map.fresh(len(vectors)))

    def add_with_ids(self, x: Any, ids: Any) -> None:
        """Add vectors [n, d] under `ids`, integers [n] >= 0, none twice and none in the index yet."""
        vectors = self._vectors.check(x, "x")
        self._add(vectors, self._new_ids(ids, len(vectors)))

    def _add(self, vectors: np.ndarray, ids: np.ndarray | None) -> None:
        before = self._vectors
        if self._planner.mode == "oblivious" and before.quantizer.plan is None:
            before.add(vectors, ids, self.threads)
            return
        seen = before.host(vectors)
        if self._planner.due(self.quantizer, seen, not self.ntotal):
            self._replan(seen, None)
        try:
            self._vectors.add(vectors, ids, self.threads)
        except BaseException:
            self._vectors = before
            raise
        self._planner.observe(self.quantizer, seen)

    def _replan(self, sample: np.ndarray, queries: np.ndarray | None) -> None:
        self._vectors = self._vectors.replanned(lambda q: self._planner.calibrated(q, sample, queries))

    def search(self, x: Any, k: int, *, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best vectors for each query.

        Parameters
        ----------
        x : array_like
            Queries, float [nq, d].
        k : int
            At least 1.
        params : optional
            SearchParameters, faiss.SearchParameters, or at once the filter (its `sel`): ids, a boolean mask
            by id, or a faiss.IDSelector.

        Returns
        -------
        D : float32 [nq, k]
            Squared distances (l2) or inner products, best first.
        I : int64 [nq, k]
            Ids; equal values come by smaller id. Where fewer than k vectors are left, -1, and in D the
            largest float32 for l2 or its negative.
        """
        vectors = self._vectors
        queries = vectors.check_queries(x, "x")
        k = check_integer(k, "k", 1)
        if params is None:
            return vectors.search(queries, k, self._metric, mask=None, threads=self.threads)
        return vectors.search(queries, k, **self._options(params))

    def range_search(
        self, x: Any, radius: float, *, params: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return every vector with a squared distance below `radius` (l2), or an inner product above it.

        Parameters
        ----------
        x : array_like
            Queries, float [nq, d].
        radius : float
            Not NaN.
        params : optional
            As for `search`.

        Returns
        -------
        lims : uint64 [nq + 1]
            The results of query i are those from lims[i] to lims[i + 1].
        D, I : float32 and int64 [lims[nq]]
            As for `search`, best first for each query.
        """
        queries = self._vectors.check_queries(x, "x")
        radius = check_radius(radius)
        options = self._options(params)
        lims, distances, labels = self._vectors.range_search(queries, radius, **options)
        return lims.astype(np.uint64) if isinstance(lims, np.ndarray) else lims, distances, labels

    def search_and_reconstruct(
        self, x: Any, k: int, *, params: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return D, I as `search` does, and R, float32 [nq, k, d]: the vectors found, NaN where I is -1."""
        distances, labels = self.search(x, k, params=params)
        ids = self._vectors.host(labels)
        vectors = np.full((*ids.shape, self.d), np.nan, dtype=np.float32)
        found = ids >= 0
        vectors[found] = self._vectors.decode(self._id_map.find(ids[found]))
        return distances, labels, self._vectors.like(vectors, labels)

    def assign(self, x: Any, k: int = 1) -> np.ndarray:
        """Return the ids [n, k] of `search` alone."""
        return self.search(x, k)[1]

    def remove_ids(self, x: Any) -> int:
        """Remove the vectors that `x` names and return how many they were.

        `x` is integers [m], of which unknown ones and repetitions count nothing, a boolean mask by id, or a
        faiss.IDSelector. The others keep their ids.
        """
        positions = find_positions(x, self._id_map, "x")
        self._vectors.remove(positions)
        return len(positions)

    def reconstruct(self, key: int) -> np.ndarray:
        """Return the vector under the id `key` as decoded, float32 [d]; IndexError if there is none."""
        key = check_integer(key, "key", 0)
        return self._vectors.decode(self._vectors.positions(np.array([key]), "key"))[0]

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> np.ndarray:
        """Return the vectors under the ids n0 to n0 + ni - 1, float32 [ni, d]; -1 stands for ntotal - n0.

        Raises IndexError if one of the ids is not in the index.
        """
        n0, ni = check_integer(n0, "n0", 0), check_integer(ni, "ni", -1)
        if ni == -1:
            ni = max(self.ntotal - n0, 0)
        if ni > self.ntotal:
            raise IndexError(f"ni must be at most ntotal = {self.ntotal}, got {ni}")
        return self._vectors.decode(self._vectors.positions(n0 + np.arange(ni), "n0 and ni"))

    def reconstruct_batch(self, key: Any) -> np.ndarray:
        """Return the vectors under the ids `key`, integers [m], as float32 [m, d], or raise IndexError."""
        return self._vectors.decode(self._vectors.positions(check_ids(key, "key"), "key"))

    def reset(self) -> None:
        """Remove every vector; ids start from 0 again."""
        self._vectors = self._vectors.fresh(self.quantizer)

    def merge_from(self, other: TurboQuantIndex, add_id: int = 0) -> None:
        """Move the vectors of `other`, an index of the same configuration, into this one and leave it empty.

        Vectors numbered 0, 1, 2, ... by `other.add` alone are numbered on as if added here. Where `other`
        holds ids of its own (from `add_with_ids`, or left over by a removal), or `add_id` is given, each
        keeps its id plus `add_id`.
        """
        if not isinstance(other, TurboQuantIndex):
            raise TypeError(f"other must be a TurboQuantIndex, got {type(other).__name__}")
        if other is self:
            raise ValueError("other must be another index, got the index itself")
        if other._metric != self._metric or not other._vectors.same_as(self._vectors):
            raise ValueError(
                f"other must have the same metric, code and plan: {self._metric}, {self._vectors.config()}, "
                f"got {other._metric}, {other._vectors.config()}"
            )
        add_id = check_integer(add_id, "add_id", -(2**63))
        if other._id_map.sequential and not add_id:
            ids = self._id_map.fresh(other.ntotal)
        else:
            ids = other.ids
            if other.ntotal:
                check_integer(int(ids.min()) + add_id, "smallest id of other plus add_id", 0)
                check_integer(int(ids.max()) + add_id, "largest id of other plus add_id", 0)
            ids += add_id
            self._id_map.check_absent(ids, "ids of other")
        self._vectors.add_collection(other._vectors, ids)
        other.reset()

    def sa_code_size(self) -> int:
        """Return the bytes of one row of `sa_encode`: `code_size`."""
        return self.code_size

    def sa_encode(self, x: Any) -> np.ndarray:
        """Return vectors [n, d] as uint8 [n, code_size]: packed code, then float32 scalars, little-endian."""
        codes, scalars = self._vectors.encode(check_vectors(x, "x", self.d), self.threads)
        return np.concatenate([codes, np.ascontiguousarray(scalars, dtype="<f4").view(np.uint8)], axis=1)

    def sa_decode(self, codes: Any) -> np.ndarray:
        """Return the vectors, float32 [n, d], of rows of `sa_encode`."""
        return self._vectors.decode_rows(*self._checked_codes(codes))

    def add_sa_codes(self, codes: Any, ids: Any = None) -> None:
        """Add rows of `sa_encode` of an equally configured index, as `add_with_ids` does, or as `add`."""
        packed, scalars = self._checked_codes(codes)
        count = len(packed)
        new = self._id_map.fresh(count) if ids is None else self._new_ids(ids, count)
        self._vectors.add_codes(packed, scalars, new)

    def __reduce__(self) -> tuple[Any, ...]:
        from .io import to_bytes

        return _unpickle, (to_bytes(self), self.threads)

    def _checked_codes(self, codes: Any) -> tuple[np.ndarray, np.ndarray]:
        return check_codes(codes, "codes", self._vectors.code_size, self._vectors.n_scalars)

    def _new_ids(self, ids: Any, n: int) -> np.ndarray:
        checked = check_ids(ids, "ids", n)
        self._id_map.check_absent(checked, "ids")
        return checked

    def _options(self, params: Any) -> dict[str, Any]:
        if params is None:
            return {"metric": self._metric, "mask": None, "threads": self.threads}
        selector, threads, further = search_parameters(params, self.threads)
        mask = None if selector is None else allowed_bits(selector, self._id_map, "params")
        if "refine_factor" in further and self.refine_bits is None:
            raise ValueError(
                f"params.refine_factor needs an index made with refine_bits, got {further['refine_factor']}"
            )
        if "deviations" in further and self.quantizer.layers is None:
            raise ValueError(f'params.deviations needs code="layered", got {further["deviations"]:g}')
        return {"metric": self._metric, "mask": mask, "threads": threads, **further}


def _unpickle(data: bytes, threads: int) -> TurboQuantIndex:
    from .io import from_bytes

    index = from_bytes(data)
    index.threads = threads
    return index
