"""Exact top-k and range search over packed codes, in the order and with the padding of FAISS."""

from __future__ import annotations

import numpy as np

from tqcore import _core
from tqcore.quantizer import Quantizer

__all__ = ["DEVIATIONS", "METRICS", "Rows", "range_search", "rescore", "search"]

METRICS = ("l2", "ip", "cosine")
DEVIATIONS = 3.0  # at which no set that was measured loses 0.1 points of recall


def search(
    quantizer: Quantizer,
    codes: np.ndarray,
    scalars: np.ndarray,
    q: np.ndarray,
    k: int,
    *,
    metric: str,
    n: int,
    ids: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    tails: np.ndarray | None = None,
    positions: bool = False,
    threads: int = 0,
    deviations: float = DEVIATIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of every query under the exact scores of their codes.

    Of a "layered" code the first layer of every row is scored, and the whole of those rows that could be among the
    best if the first layer's error were `deviations` standard deviations. Which row beyond that is found can depend
    on the number of threads; all other results do not.

    Parameters
    ----------
    quantizer : Quantizer
        What the codes were made with.
    codes : ndarray
        Blocks uint32 [nb, words, 16] of the first `core.head_size` bytes (see `tqcore.packing`) or rows uint8
        [n, code_size].
    scalars : ndarray
        float32 [n_scalars, >= n].
    q : ndarray
        Queries float32 [nq, d].
    k : int
        Results a query, at least 1.
    metric : str
        "l2", "ip" or "cosine".
    n : int
        Rows in use.
    ids : ndarray, optional
        int64 [>= n]; by default the row number.
    mask : ndarray, optional
        uint8 [ceil(n / 8)]: bit i % 8 of byte i // 8 admits row i.
    positions : bool
        Return row numbers in I; ids then only order equal scores.
    threads : int
        0 takes the default.
    tails : ndarray, optional
        uint8 [>= n, code_size - head_size]: with blocks of a "layered" code, what these do not hold.
    deviations : float
        At least 0, for "layered" codes; infinity scores every row whole.

    Returns
    -------
    D : ndarray
        float32 [nq, k], best first; padded with the worst value of the metric.
    I : ndarray
        int64 [nq, k]; equal scores by smaller id; padded with -1.
    """
    rows = Rows(quantizer, codes, scalars, metric=metric, n=n, ids=ids, tails=tails)
    return rows.search(q, k, mask=mask, positions=positions, threads=threads, deviations=deviations)


def rescore(
    quantizer: Quantizer,
    codes: np.ndarray,
    scalars: np.ndarray,
    q: np.ndarray,
    candidates: np.ndarray,
    k: int,
    *,
    metric: str,
    n: int,
    ids: np.ndarray | None = None,
    tails: np.ndarray | None = None,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's candidates under the exact scores of these codes.

    Parameters are those of `search`, and `candidates`, int64 [nq, m]: rows, none twice for one query, or -1 for
    none. Returns D and I as `search` does.

    Raises
    ------
    ValueError
        For a candidate that is not a row.
    """
    rows = Rows(quantizer, codes, scalars, metric=metric, n=n, ids=ids, tails=tails)
    return rows.rescore(q, candidates, k, threads=threads)


def range_search(
    quantizer: Quantizer,
    codes: np.ndarray,
    scalars: np.ndarray,
    q: np.ndarray,
    radius: float,
    *,
    metric: str,
    n: int,
    ids: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    tails: np.ndarray | None = None,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rows strictly inside `radius`: l2 distances below it, inner products above it.

    Parameters are those of `search`.

    Returns
    -------
    lims : ndarray
        int64 [nq + 1]; query i has the results ``lims[i]`` to ``lims[i + 1] - 1``, best first.
    D, I : ndarray
        float32 and int64 [lims[-1]].
    """
    rows = Rows(quantizer, codes, scalars, metric=metric, n=n, ids=ids, tails=tails)
    return rows.range_search(q, radius, mask=mask, threads=threads)


class Rows:
    """Rows to search as the core takes them, for any number of calls while no array changes its place or size.

    Parameters, here and of the methods, are those of the functions, which make one for each call.

    Raises
    ------
    ValueError
        For a metric that is none, or that the quantizer's scalars do not fit.
    """

    __slots__ = ("_arrays", "_core", "_metric", "_quantizer", "_rotates", "_whole")

    def __init__(
        self,
        quantizer: Quantizer,
        codes: np.ndarray,
        scalars: np.ndarray,
        *,
        metric: str,
        n: int,
        ids: np.ndarray | None = None,
        tails: np.ndarray | None = None,
    ) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        if (metric == "l2") != quantizer.store_norm:
            raise ValueError(f"metric {metric!r} needs a quantizer with store_norm={metric == 'l2'}")
        self._quantizer, self._core, self._metric = quantizer, quantizer.core, metric
        # Where nothing but the rotation stands between vectors and the code's coordinates, the core does both steps.
        self._rotates = quantizer.signs is not None and quantizer.plan is None
        self._arrays = codes, scalars, n, ids, tails
        self._whole: _core.Stored | None = None  # for searches without more options, made by the first

    def search(
        self,
        q: np.ndarray,
        k: int,
        *,
        mask: np.ndarray | None = None,
        positions: bool = False,
        threads: int = 0,
        deviations: float = DEVIATIONS,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See the function `search`."""
        stored = self._whole
        if positions or deviations != DEVIATIONS:
            stored = self._stored(None, positions, deviations)
        elif stored is None:
            stored = self._whole = self._stored()
        q, constants = self._asked(q, threads)
        return _core.search(self._core, stored, q, constants, k, threads, mask)

    def rescore(
        self, q: np.ndarray, candidates: np.ndarray, k: int, *, threads: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """See the function `rescore`."""
        q, constants = self._asked(q, threads)
        stored = self._stored(deviations=np.inf)
        return _core.rescore(self._core, stored, q, constants, candidates, k, threads)

    def range_search(
        self, q: np.ndarray, radius: float, *, mask: np.ndarray | None = None, threads: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See the function `range_search`."""
        q, constants = self._asked(q, threads)
        stored = self._stored(mask, deviations=np.inf)
        return _core.range_search(self._core, stored, q, constants, float(radius), threads)

    def _asked(self, q: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray | None]:
        return (q, None) if self._rotates else self._quantizer.query(q, self._metric, threads)

    def _stored(
        self, mask: np.ndarray | None = None, positions: bool = False, deviations: float = DEVIATIONS
    ) -> _core.Stored:
        quantizer = self._quantizer
        codes, scalars, n, ids, tails = self._arrays
        stored = _core.Stored()
        if codes.ndim == 3:
            stored.blocks, stored.tails = codes, tails
        else:
            stored.rows = codes
        if quantizer.same_scale is None:
            stored.scale = scalars[0]
        else:
            stored.same_scale = quantizer.same_scale
        if quantizer.code == "prod":
            stored.sign_scale = scalars[1]
        if quantizer.store_norm:
            stored.squared_norm = scalars[-1]
        stored.ids, stored.mask, stored.n, stored.positions = ids, mask, n, positions
        if self._rotates:
            stored.signs, stored.unit = quantizer.signs, quantizer.normalize
        if quantizer.layers is not None and np.isfinite(deviations):
            stored.head_share, stored.deviations = quantizer.layers.head_share, deviations
        return stored
