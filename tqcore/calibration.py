"""Plans from a sample: one pass for mean and second moments, then reverse water-filling; no iterations over data."""

from __future__ import annotations

import numpy as np

from tqcore.chain import chain_mse, mixed_mse
from tqcore.config import CHAIN_RATES, ChainLayout, chain_segments
from tqcore.plan import Plan, Segment

__all__ = ["calibrate"]

# Queries are assumed to have the second moments of the data to this power: 0 assumes nothing of them, 0.5 that they
# spread much like the data. Measured best between the two, for queries like the data and unlike it.
_QUERY_POWER = 0.35
_GROUP = 16  # dimensions that share a rate
_FLATTENING = 0.75  # coordinates are divided by their deviation to this power before coding, see `_spread`
_LEAST_GAIN = 0.02  # predicted saving of squared error below which the oblivious rotation is kept
_FLOOR = 1e-7  # least eigenvalue kept, relative to the largest


def calibrate(
    sample: np.ndarray,
    bits: float,
    *,
    memory: int = 2,
    seed: int = 0,
    queries: np.ndarray | None = None,
    centre_queries: bool = False,
) -> Plan:
    """The plan that minimises the expected squared error of <q, x> at the bytes of the uniform code.

    Vectors are centred and mapped to the eigenbasis of Q^(1/2) C Q^(1/2), C the covariance of the sample and Q the
    second moments of the queries; there the error of <q, x> is the plain squared error, and bits go to groups of
    dimensions in order of what they save (reverse water-filling over the chain's operational rate-distortion curve).

    Parameters
    ----------
    sample : ndarray
        float32 [n, d], n >= 2; already of length 1 for the cosine metric.
    bits : float
        Bits per dimension on average.
    memory : int
        Memory of the chain codes.
    seed : int
        Seed of the plan's random rotations.
    queries : ndarray, optional
        float32 [m, d] like those to come. Without them Q is taken as the second moments of the sample to the power
        0.35, its mean included unless it comes off the queries too.
    centre_queries : bool
        Whether the mean comes off the queries too, as for l2.

    Returns
    -------
    Plan
        One that only centres where the second moments promise a saving of less than 2%.
    """
    sample = np.asarray(sample)
    d = sample.shape[1]
    mean = _mean(sample)
    centred = sample - mean
    covariance = _shrunk(centred)
    backward = None
    if queries is not None:
        moments = _shrunk(queries - mean if centre_queries else np.asarray(queries))
        spectrum, forward, backward = _weighted_basis(covariance, moments, 1.0)
    elif centre_queries or not mean.any():
        spectrum, forward = _powered_basis(covariance)
    else:
        # Queries like the data have its mean too; what goes along it then weighs most.
        energy = float(np.einsum("ij,ij->", centred, centred, dtype=np.float64)) / centred.size
        moments = energy * covariance + np.outer(mean, mean).astype(np.float64)
        spectrum, forward, backward = _weighted_basis(covariance, moments, _QUERY_POWER)
    segments = _segments(spectrum, bits, memory, d)
    uniform = float(spectrum.sum()) * mixed_mse(d, bits, memory)
    spent = _predicted(spectrum, segments, memory)
    if spent > (1 - _LEAST_GAIN) * uniform:
        return Plan(mean, tuple(Segment(*s) for s in chain_segments(d, bits)), seed, memory)
    dims = sum(s.dims for s in segments)
    return Plan(
        mean,
        tuple(segments),
        seed,
        memory,
        _deviations(spectrum, segments),
        np.ascontiguousarray(forward[:, :dims], dtype=np.float32),
        None if backward is None else np.ascontiguousarray(backward[:, :dims], dtype=np.float32),
    )


def _mean(sample: np.ndarray) -> np.ndarray:
    """Mean float32 [d], shrunk towards 0 by what the spread of n rows adds to its length (James and Stein, 1961)."""
    mean = sample.mean(axis=0, dtype=np.float64)
    length = float(mean @ mean)
    if length == 0:
        return np.zeros(sample.shape[1], np.float32)
    energy = float(np.einsum("ij,ij->", sample, sample, dtype=np.float64)) / len(sample)
    noise = max(0.0, energy - length) / (len(sample) - 1)
    return (mean * max(0.0, 1 - noise / length)).astype(np.float32)


def _shrunk(rows: np.ndarray) -> np.ndarray:
    """Second moments float64 [d, d], shrunk towards a multiple of the identity.

    The shrinkage is the oracle approximating one (Chen, Wiesel, Eldar and Hero, arXiv 0907.4698, eq. 23), which
    keeps small and rank-deficient samples from being taken at their word.
    """
    n, d = rows.shape
    moments = np.asarray(rows.T @ rows, dtype=np.float64) / n
    trace, square = float(np.trace(moments)), float((moments * moments).sum())
    if trace <= 0:
        return np.eye(d)
    below = (n + 1 - 2 / d) * (square - trace**2 / d)
    above = (1 - 2 / d) * square + trace**2
    share = 1.0 if below <= 0 else min(1.0, above / below)
    moments *= 1 - share
    moments[np.diag_indices(d)] += share * trace / d
    return moments / trace * d


def _descending(values: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.maximum(values[::-1], _FLOOR * values[-1])
    return values, vectors[:, ::-1]


def _powered_basis(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spectrum [d] and forward [d, d] where Q is a power of the covariance, so that both have one eigenbasis."""
    values, vectors = _descending(*np.linalg.eigh(covariance))
    weights = (values / values[0]) ** _QUERY_POWER
    return values * weights, vectors * np.sqrt(weights)


def _weighted_basis(
    covariance: np.ndarray, moments: np.ndarray, power: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectrum [d], forward [d, d] and backward [d, d] of Q^(1/2) C Q^(1/2), Q the moments to a power."""
    q_values, q_vectors = _descending(*np.linalg.eigh(moments))
    roots = (q_values / q_values[0]) ** (power / 2)
    root = (q_vectors * roots) @ q_vectors.T
    inverse = (q_vectors / roots) @ q_vectors.T
    values, vectors = _descending(*np.linalg.eigh(root @ covariance @ root))
    return values, root @ vectors, inverse @ vectors


def _groups(d: int) -> np.ndarray:
    """Sizes of the groups of dimensions; the last one takes what is left over."""
    count = max(1, d // _GROUP)
    sizes = np.full(count, _GROUP if d >= _GROUP else d)
    sizes[-1] += d - sizes.sum()
    return sizes


def _curve(memory: int) -> tuple[list[float], list[float]]:
    """Rates and distortions on the lower convex hull of the chain codes, from rate 0."""
    points = [(0.0, 1.0)] + [(rate, chain_mse(rate, memory)) for rate in sorted(CHAIN_RATES)]
    hull = [points[0]]
    while hull[-1] != points[-1]:
        rate, error = hull[-1]
        hull.append(max((p for p in points if p[0] > rate), key=lambda p: (error - p[1]) / (p[0] - rate)))
    return [p[0] for p in hull], [p[1] for p in hull]


def _segments(spectrum: np.ndarray, bits: float, memory: int, d: int) -> list[Segment]:
    """Segments whose codes take at most the bytes of the uniform code."""
    sizes = _groups(d)
    starts = np.cumsum(sizes) - sizes
    energy = np.array([_spread(spectrum[a : a + n]) for a, n in zip(starts, sizes, strict=True)])
    rates, errors = _curve(memory)
    limit = sum(ChainLayout(*s).code_size for s in chain_segments(d, bits))
    budget = 8.0 * limit
    while True:
        levels = _water_fill(energy, sizes, rates, errors, budget)
        segments: list[Segment] = []
        for size, level in zip(sizes.tolist(), levels, strict=True):
            if level == 0:
                break
            if segments and segments[-1].bits == rates[level]:
                size += segments.pop().dims
            segments.append(Segment(size, rates[level]))
        if sum(ChainLayout(s.dims, s.bits).code_size for s in segments) <= limit:
            return segments
        budget -= 4.0


def _water_fill(
    energy: np.ndarray, sizes: np.ndarray, rates: list[float], errors: list[float], budget: float
) -> np.ndarray:
    """Level of every group: the step that saves most per bit goes first, while the budget lasts."""
    levels = np.zeros(len(sizes), int)
    left = budget
    cost = np.diff(rates)[:, None] * sizes
    saving = -np.diff(errors)[:, None] * energy / cost
    while True:
        best, at = -1.0, -1
        for g in range(len(sizes)):
            level = levels[g]
            if level < len(cost) and cost[level, g] <= left + 1e-9 and saving[level, g] > best:
                best, at = saving[level, g], g
        if at < 0:
            return levels
        left -= cost[levels[at], at]
        levels[at] += 1


def _spread(spectrum: np.ndarray) -> float:
    """Squared error of a segment float64 [D] over that of its code: D times the two means of `_FLATTENING`.

    With coordinates divided by sigma**a, a code of error E leaves E mean(sigma**(2 - 2 a)) mean(sigma**(2 a)) a
    dimension. That is least at a = 1/2; further towards 1, where all coordinates are equal, lengths vary less from
    vector to vector, and fewer coordinates fall outside the tables' range. Measured best between the two.
    """
    return float(np.mean(spectrum ** (1 - _FLATTENING)) * np.sum(spectrum**_FLATTENING))


def _deviations(spectrum: np.ndarray, segments: list[Segment]) -> np.ndarray:
    """What the coordinates are divided by, float32 [D]: a power of their deviation, of variance 1 in each segment."""
    factors, first = [], 0
    for s in segments:
        part = spectrum[first : first + s.dims]
        factors.append(np.sqrt(part**_FLATTENING * np.mean(part ** (1 - _FLATTENING))))
        first += s.dims
    return np.concatenate(factors).astype(np.float32)


def _predicted(spectrum: np.ndarray, segments: list[Segment], memory: int) -> float:
    """Squared error that the segments leave, those dimensions they drop included."""
    first, error = 0, 0.0
    for s in segments:
        error += _spread(spectrum[first : first + s.dims]) * chain_mse(s.bits, memory)
        first += s.dims
    return error + float(spectrum[first:].sum())
