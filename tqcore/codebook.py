"""Lloyd-Max codebooks of one coordinate of a uniform point on the sphere, scaled to unit variance."""

from functools import lru_cache

import numpy as np

__all__ = ["boundaries", "distortion", "lloyd_max"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_TAIL = 14.0  # standard deviations; the mass beyond is below e**-98
_TOLERANCE = 1e-14
_MAX_STEPS = 60


def lloyd_max(d, bits):
    """Centroids that minimise the expected squared error of one rotated coordinate.

    The coordinate is ``sqrt(d) * t`` with `t` of density proportional to ``(1 - t**2) ** ((d - 3) / 2)`` on
    [-1, 1] (TurboQuant, arXiv 2504.19874, Lemma 1 and equation 4). For large `d` it is N(0, 1).

    Parameters
    ----------
    d : int or None
        Dimension of the sphere's space, at least 8; None for the limit N(0, 1).
    bits : int
        Bits of the code, 1 to 8.

    Returns
    -------
    numpy.ndarray
        float32 [2**bits], ascending, symmetric about 0; a new array on every call.

    Raises
    ------
    ValueError
        If `d` is below 8 or `bits` is not an integer from 1 to 8.
    """
    half = _positive_half(*_checked(d, bits))
    return np.concatenate([-half[::-1], half]).astype(np.float32)


def distortion(d, bits):
    """Mean squared error per dimension of the code of `lloyd_max`, in units of the variance.

    Parameters
    ----------
    d : int or None
        As in `lloyd_max`.
    bits : int
        As in `lloyd_max`.

    Returns
    -------
    float
        The distortion; a vector of any norm, rotated uniformly, loses this share of its squared length.

    Raises
    ------
    ValueError
        If `d` is below 8 or `bits` is not an integer from 1 to 8.
    """
    d, bits = _checked(d, bits)
    half = _positive_half(d, bits)
    edges = np.concatenate([[0.0], 0.5 * (half[1:] + half[:-1])])
    u, weight = _quadrature(d, edges)
    return float(np.sum(weight * (u - half[:, None]) ** 2) / np.sum(weight))


def boundaries(centroids):
    """Decision boundaries between neighbouring centroids, computed in float32.

    Parameters
    ----------
    centroids : numpy.ndarray
        float32 [k], ascending.

    Returns
    -------
    numpy.ndarray
        float32 [k - 1]; the code of a value is the number of boundaries strictly below it.
    """
    c = np.asarray(centroids, dtype=np.float32)
    return (c[:-1] + c[1:]) * np.float32(0.5)


def _checked(d, bits):
    if d is not None and (int(d) != d or d < 8):
        raise ValueError(f"d must be an integer of at least 8, or None, got {d!r}")
    if int(bits) != bits or not 1 <= bits <= 8:
        raise ValueError(f"bits must be an integer from 1 to 8, got {bits!r}")
    return (None if d is None else int(d)), int(bits)


@lru_cache(maxsize=256)
def _positive_half(d, bits):
    """Positive centroids, float64 [2**(bits - 1)], by Newton's method on the Lloyd fixed point."""
    c = _companding_start(d, 2 ** (bits - 1))
    gap, *jacobian = _fixed_point(d, c)
    for _ in range(_MAX_STEPS):
        if np.max(np.abs(gap)) < _TOLERANCE:
            break
        step = _solved(*jacobian, -gap)
        moved, size = _shortened(d, c, step, gap)
        if moved is None:  # rounding leaves nothing to gain
            break
        c = c + size * step
        gap, *jacobian = moved
    c.setflags(write=False)
    return c


def _shortened(d, c, step, gap):
    """The largest of 1, 1/2, 1/4, ... of a Newton step that keeps the order and reduces the gap."""
    size = 1.0
    while size > 1e-6:
        trial = c + size * step
        if trial[0] > 0 and np.all(np.diff(trial) > 0) and (d is None or trial[-1] < np.sqrt(d)):
            moved = _fixed_point(d, trial)
            if np.linalg.norm(moved[0]) < np.linalg.norm(gap):
                return moved, size
        size *= 0.5
    return None, 0.0


def _fixed_point(d, c):
    """Cell means minus centroids, [k], and its Jacobian below [k-1], on [k] and above [k-1] the diagonal."""
    inner = 0.5 * (c[1:] + c[:-1])
    u, weight = _quadrature(d, np.concatenate([[0.0], inner]))
    mass = weight.sum(axis=1)
    mean = (weight * u).sum(axis=1) / mass
    density = np.exp(_log_density(d, inner))
    # A boundary moves half as far as each of its two centroids.
    above = 0.5 * density * (inner - mean[:-1]) / mass[:-1]
    below = 0.5 * density * (mean[1:] - inner) / mass[1:]
    diagonal = np.concatenate([above, [0.0]]) + np.concatenate([[0.0], below]) - 1.0
    return mean - c, below, diagonal, above


def _solved(below, diagonal, above, right):
    """Solution of a tridiagonal system, by elimination; LAPACK's bits and threads would vary."""
    k = len(diagonal)
    pivot, value = diagonal.tolist(), right.tolist()
    below, above = below.tolist(), above.tolist()
    for i in range(1, k):
        factor = below[i - 1] / pivot[i - 1]
        pivot[i] -= factor * above[i - 1]
        value[i] -= factor * value[i - 1]
    value[-1] /= pivot[-1]
    for i in range(k - 2, -1, -1):
        value[i] = (value[i] - above[i] * value[i + 1]) / pivot[i]
    return np.array(value)


def _quadrature(d, edges):
    """Gauss-Legendre points and weights times density, [cells, 64] each, of the cells that start at `edges`.

    On the sphere the integration runs over the angle, where the density cos(angle)**(d-2) has no end-point
    singularity.
    """
    if d is None:
        lower, end = edges, _TAIL
    else:
        lower, end = np.arcsin(edges / np.sqrt(d)), min(np.pi / 2, _TAIL / np.sqrt(d))
    width = 0.5 * np.diff(lower, append=end)[:, None]
    at = lower[:, None] + width * (_NODES + 1.0)
    if d is None:
        return at, width * _WEIGHTS * np.exp(-0.5 * at**2)
    sine = np.sin(at)
    # sqrt(d) is du/d(angle) at 0: weights then agree with `_log_density`, whose value at u = 0 is 0.
    return np.sqrt(d) * sine, np.sqrt(d) * width * _WEIGHTS * np.exp(0.5 * (d - 2) * np.log1p(-(sine**2)))


def _log_density(d, u):
    """Logarithm of the density at `u`, up to a constant, with value 0 at u = 0."""
    if d is None:
        return -0.5 * u**2
    return 0.5 * (d - 3) * np.log1p(-(u**2) / d)


def _companding_start(d, k):
    """Points at the quantiles of density**(1/3), the asymptotically best spread (Panter and Dite, 1951)."""
    end = _TAIL if d is None else min(_TAIL, np.sqrt(d) * (1 - 1e-9))
    grid = np.linspace(0.0, end, 4096)
    spread = np.exp(_log_density(d, grid) / 3)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (spread[1:] + spread[:-1]))])
    return np.interp((np.arange(k) + 0.5) / k * cumulative[-1], cumulative, grid)
