"""The scalar code: each coordinate goes to its nearest centroid (TurboQuant, Algorithm 1)."""

import numpy as np

__all__ = ["mse_decode", "mse_encode", "mse_lut"]


def mse_encode(y, centroids):
    """Indices of the nearest centroids, int64 [n, d]; a tie goes to the lower one.

    Parameters
    ----------
    y : numpy.ndarray
        float32 [n, d].
    centroids : numpy.ndarray
        float32 [2**bits], ascending.
    """
    edges = (centroids[:-1] + centroids[1:]) * np.float32(0.5)
    index = np.zeros(y.shape, dtype=np.int64)
    for edge in edges:
        index += edge < y
    return index


def mse_decode(index, centroids):
    """Centroids, float32 [n, d], of indices [n, d]."""
    return centroids[index]


def mse_lut(q, centroids):
    """Scores of each value of each nibble, float64 [nq, J, 16], for codes of 1, 2 or 4 bits.

    Parameters
    ----------
    q : numpy.ndarray
        float32 [nq, d], rotated queries.
    centroids : numpy.ndarray
        float32 [2, 4 or 16].
    """
    nq, d = q.shape
    bits = centroids.size.bit_length() - 1
    per_nibble = 4 // bits
    lut = np.zeros((nq, -(-d // per_nibble), 16))
    nibble = np.arange(16)
    for i in range(d):
        value = (nibble >> (bits * (i % per_nibble))) & (2**bits - 1)
        lut[:, i // per_nibble] += q[:, i, None].astype(np.float64) * centroids[value]
    return lut
