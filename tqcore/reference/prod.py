"""The inner-product code: a scalar code of b - 1 bits and signs of a sketch of its error (Algorithm 2)."""

import math

import numpy as np

from tqcore.reference.mse import mse_decode, mse_encode
from tqcore.reference.rotation import dot, gaussian_matrix, hadamard_rotate, hadamard_signs

__all__ = ["prod_decode", "prod_encode", "project", "residual_constant", "sketch_matrix"]


def sketch_matrix(d, sketch, seed):
    """The sketch S, float64 [d, d]: iid N(0, 1) ("gaussian") or sqrt(d) times a rotation ("orthogonal")."""
    if sketch == "gaussian":
        return gaussian_matrix(d, seed, 2)
    rows = hadamard_rotate(np.eye(d, dtype=np.float32), hadamard_signs(d, seed, 3))
    return math.sqrt(d) * rows.T.astype(np.float64)


def project(rows, sketch, seed):
    """Sketched rows S r, float32 [n, d], of float32 [n, d]: in float64, or in float32 as a rotation."""
    d = rows.shape[1]
    if sketch == "gaussian":
        return (rows.astype(np.float64) @ gaussian_matrix(d, seed, 2).T).astype(np.float32)
    return hadamard_rotate(rows, hadamard_signs(d, seed, 3)) * np.float32(math.sqrt(d))


def residual_constant(d, sketch):
    """The factor c that makes c * |r| * <S q, sign(S r)> an unbiased estimate of <q, r>.

    For iid rows it is sqrt(pi / 2) / d (TurboQuant, Lemma 4); for sqrt(d) times a uniform rotation it is
    1 / (d**1.5 * E|u_1|), u uniform on the sphere.
    """
    if sketch == "gaussian":
        return math.sqrt(math.pi / 2) / d
    mean_abs = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
    return 1.0 / (d**1.5 * mean_abs)


def prod_encode(y, centroids, sketch, seed):
    """Encode rotated rows of squared length d.

    Parameters
    ----------
    y : numpy.ndarray
        float32 [n, d].
    centroids : numpy.ndarray or None
        float32 [2**(bits - 1)]; None for the one-bit code, which has no scalar part.
    sketch : str
        "gaussian" or "orthogonal".
    seed : int
        Seed of the sketch.

    Returns
    -------
    index : numpy.ndarray
        int64 [n, d], or [n, 0] without a scalar part.
    positive : numpy.ndarray
        bool [n, d]: the sketched error is at least 0.
    residual_scale : numpy.ndarray
        float64 [n]: the constant times the length of the error.
    """
    d = y.shape[1]
    if centroids is None:
        index, residual = np.zeros((len(y), 0), dtype=np.int64), y
    else:
        index = mse_encode(y, centroids)
        residual = y - mse_decode(index, centroids)
    positive = project(residual, sketch, seed) >= 0
    return index, positive, residual_constant(d, sketch) * np.sqrt(dot(residual, residual))


def prod_decode(index, positive, residual_scale, centroids, sketch, seed):
    """Rotated reconstruction, float64 [n, d]: the scalar part plus the part that the signs hold."""
    z = np.where(positive, 1.0, -1.0)
    residual = residual_scale[:, None] * (z @ sketch_matrix(z.shape[1], sketch, seed))
    return residual if centroids is None else mse_decode(index, centroids) + residual
