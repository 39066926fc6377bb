"""Fixed random orthogonal transforms: after one, the coordinates of any vector look like N(0, |x|**2 / d)."""

from functools import cached_property

import numpy as np

from tqcore import _core

__all__ = ["HaarRotation", "HadamardRotation", "gaussian_matrix"]

_ROUNDS = 3
_HAAR_STREAM = 1


class HadamardRotation:
    """Three rounds of random signs and Walsh-Hadamard transforms, for any d without padding, in O(d log d).

    Where d is no power of two, each round transforms the first and the last p coordinates, p the largest
    power of two below d, and mixes the two halves before the next one.

    Parameters
    ----------
    d : int
        Dimension, at least 8.
    seed : int
        Seed, 0 to 2**64 - 1.
    stream : int
        Independent rotations of one seed have different streams.
    threads : int
        Threads of `rotate` and `unrotate`; 0 for the default.

    Attributes
    ----------
    signs : numpy.ndarray
        float32 [3, 2, d] of +-1, read-only.
    """

    def __init__(self, d, seed, stream=0, threads=0):
        self.d = d
        self.threads = threads
        raw = _philox(seed, stream).random_raw(-(-2 * _ROUNDS * d // 64)).astype("<u8")
        bits = np.unpackbits(raw.view(np.uint8), bitorder="little")[: 2 * _ROUNDS * d]
        self.signs = (1.0 - 2.0 * bits).astype(np.float32).reshape(_ROUNDS, 2, d)
        self.signs.setflags(write=False)

    def rotate(self, y):
        """Rotated rows, a new float32 [n, d], of float32 [n, d]; the same bits at every SIMD level."""
        return _core.hadamard_rotate(_rows(y), self.signs, False, self.threads)

    def unrotate(self, y):
        """Inverse of `rotate` up to rounding, a new float32 [n, d], of float32 [n, d]."""
        return _core.hadamard_rotate(_rows(y), self.signs, True, self.threads)


class HaarRotation:
    """A uniformly random orthogonal matrix, as in the paper, in O(d**2); the last bits depend on the BLAS.

    Parameters
    ----------
    d : int
        Dimension, at least 8.
    seed : int
        Seed, 0 to 2**64 - 1.
    """

    def __init__(self, d, seed):
        self.d, self.seed = d, seed

    # Made when it is first used: a file of a few hundred bytes may ask for any d.
    @cached_property
    def matrix(self):
        """float32 [d, d] with orthonormal rows, read-only."""
        q, r = np.linalg.qr(gaussian_matrix(self.d, self.seed, _HAAR_STREAM))
        # A positive diagonal of R makes the factor unique, and Q uniform (Mezzadri, arXiv math-ph/0609050).
        matrix = (q * np.where(np.diag(r) < 0, -1.0, 1.0)).astype(np.float32)
        matrix.setflags(write=False)
        return matrix

    def rotate(self, y):
        """Rotated rows, a new float32 [n, d], of float32 [n, d]."""
        return _rows(y) @ self.matrix.T

    def unrotate(self, y):
        """Inverse of `rotate` up to rounding, a new float32 [n, d], of float32 [n, d]."""
        return _rows(y) @ self.matrix


def gaussian_matrix(d, seed, stream):
    """N(0, 1) samples that are the same on every platform to the last bits, by Box and Muller's method.

    Parameters
    ----------
    d : int
        Dimension.
    seed, stream : int
        Key of the Philox generator.

    Returns
    -------
    numpy.ndarray
        float64 [d, d].
    """
    raw = _philox(seed, stream).random_raw(d * d + d * d % 2)
    u = (raw >> np.uint64(11)) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-u[0::2]))
    angle = 2.0 * np.pi * u[1::2]
    samples = np.empty(u.size)
    samples[0::2] = radius * np.cos(angle)
    samples[1::2] = radius * np.sin(angle)
    return samples[: d * d].reshape(d, d)


def _philox(seed, stream):
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))


def _rows(y):
    return np.ascontiguousarray(y, dtype=np.float32)
