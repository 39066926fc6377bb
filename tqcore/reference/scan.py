"""Exact scores against reconstructions, and brute-force search over them."""

import numpy as np

from tqcore.reference.rotation import dot, norm

__all__ = ["range_search", "rescore", "scale", "score", "search"]

_WORST = np.finfo(np.float32).max


def scale(norms, y, yhat, mode):
    """Factor float32 [n] that takes a rotated reconstruction back to the row's length.

    "unbiased" makes the estimate of every inner product unbiased over rotations (EDEN, ICML 2022; DRIVE,
    arXiv 2105.08339): |x|**2 / <x, x_hat> with the norm taken out. "norm" only undoes the normalisation.

    Parameters
    ----------
    norms : numpy.ndarray
        float64 [n].
    y, yhat : numpy.ndarray
        float32 [n, d], rows of squared length d and their reconstructions.
    mode : str
        "unbiased" or "norm".
    """
    root = np.sqrt(np.float64(y.shape[1]))
    plain = norms / root
    if mode == "norm":
        return _rounded(plain)
    overlap = dot(y, yhat)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _rounded(np.where(overlap > 0, norms * root / overlap, plain))


def score(q, parts, scalars, metric):
    """Scores of all rows for all queries, float64 [nq, n].

    Parameters
    ----------
    q : numpy.ndarray
        float32 [nq, d], queries as they came.
    parts : list of numpy.ndarray
        float64 [nq, n] for each scale column: inner products of rotated queries with yhat, and for the `prod`
        code of sketched queries with signs.
    scalars : numpy.ndarray
        float32 [n, n_scalars]: one scale for each part, then for l2 the squared norm.
    metric : str
        "l2": squared distance; "ip": inner product; "cosine": inner product over the query's norm, 0 for a
        zero query.
    """
    inner = np.zeros((len(q), len(scalars)))
    for column, part in enumerate(parts):
        inner += scalars[:, column].astype(np.float64) * part
    norms = norm(q)[:, None]
    if metric == "l2":
        return norms**2 + scalars[:, len(parts)].astype(np.float64) - 2.0 * inner
    if metric == "cosine":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(norms > 0, inner / norms, 0.0)
    return inner


def search(scores, k, metric, ids=None, mask=None):
    """Best `k` rows of each query, equal scores by id, padded as FAISS pads.

    Parameters
    ----------
    scores : numpy.ndarray
        float64 [nq, n].
    k : int
        Results for each query.
    metric : str
        "l2" (least first, not below 0), "ip" or "cosine" (greatest first).
    ids : numpy.ndarray or None
        int64 [n]; positions by default.
    mask : numpy.ndarray or None
        bool [n]; only rows that are True take part.

    Returns
    -------
    D : numpy.ndarray
        float32 [nq, k].
    I : numpy.ndarray
        int64 [nq, k]; -1, with the worst float32, where fewer than k rows take part.
    """
    nq = len(scores)
    distances = np.full((nq, k), _WORST if metric == "l2" else -_WORST, dtype=np.float32)
    labels = np.full((nq, k), -1, dtype=np.int64)
    for row, (best, names) in enumerate(_ranked(scores, metric, ids, mask, np.float64)):
        count = min(k, len(best))
        distances[row, :count], labels[row, :count] = best[:count], names[:count]
    return distances, labels


def rescore(scores, candidates, k, metric, ids=None):
    """Best `k` of the rows `candidates`, int64 [nq, m] with -1 for none, of each query: D and I as for `search`."""
    results = []
    for row, chosen in zip(scores, candidates, strict=True):
        mask = np.zeros(scores.shape[1], dtype=bool)
        mask[chosen[chosen >= 0]] = True
        results.append(search(row[None], k, metric, ids, mask))
    if not results:
        return search(scores, k, metric, ids)
    return tuple(np.concatenate(part) for part in zip(*results, strict=True))


def range_search(scores, radius, metric, ids=None, mask=None):
    """Rows strictly better than `radius`, best first by query: (lims int64 [nq + 1], D float32, I int64)."""
    lims, distances, labels = [0], [np.zeros(0, dtype=np.float32)], [np.zeros(0, dtype=np.int64)]
    for best, names in _ranked(scores, metric, ids, mask, np.float32):
        inside = best < np.float32(radius) if metric == "l2" else best > np.float32(radius)
        distances.append(best[inside])
        labels.append(names[inside])
        lims.append(lims[-1] + int(inside.sum()))
    return np.array(lims, dtype=np.int64), np.concatenate(distances), np.concatenate(labels)


def _ranked(scores, metric, ids, mask, precision):
    """For each query, float32 distances best first and their ids; scores equal at `precision` go by id."""
    ids = np.arange(scores.shape[1]) if ids is None else np.asarray(ids)
    keep = np.ones(scores.shape[1], dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    for row in scores[:, keep]:
        distance = _rounded(np.maximum(row, 0.0) if metric == "l2" else row)
        key = row if precision is np.float64 else distance
        order = np.lexsort((ids[keep], key if metric == "l2" else -key))
        yield distance[order], ids[keep][order].astype(np.int64)


def _rounded(values):
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)
