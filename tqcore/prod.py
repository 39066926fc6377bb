"""The inner-product code (TurboQuant, Algorithm 2): a scalar code of b - 1 bits, and signs of its error."""

import math
from functools import cached_property

import numpy as np

from tqcore.codebook import boundaries, lloyd_max
from tqcore.rotation import HadamardRotation, gaussian_matrix

__all__ = ["Prod"]

_GAUSSIAN_STREAM = 2
_HADAMARD_STREAM = 3
_CHUNK = 4096


class Prod:
    """Codes of rotated rows of squared length d, whose inner products with any query are unbiased.

    With r the error of the scalar part, S the sketch and z = sign(S r), the estimate of <q, y> for a rotated
    query q is ``<q, yhat> + residual_scale * <S q, z>``, residual_scale = const * |r|.

    Parameters
    ----------
    d : int
        Dimension, at least 8.
    bits : int
        Bits per dimension, 1 to 8; at 1 there is no scalar part and the code is QJL (arXiv 2406.03482).
    sketch : str
        "gaussian" (the paper's: iid N(0, 1) entries) or "orthogonal" (sqrt(d) times a random rotation: as
        many bits, and about 2.75 times less variance).
    seed : int
        Seed of the sketch.

    Attributes
    ----------
    centroids : numpy.ndarray
        float32 [2**(bits - 1)] of the scalar part; a single 0 at one bit.
    const : float
        Factor that makes const * |r| * <S q, z> an unbiased estimate of <q, r>; already in residual_scale.
    mse_size : int
        Bytes of the scalar part.
    code_size : int
        Bytes of a code: the scalar part, then d sign bits, each padded to a byte.

    Raises
    ------
    ValueError
        If `bits` or `sketch` is not one of the above.
    """

    def __init__(self, d, bits, sketch, seed):
        if int(bits) != bits or not 1 <= bits <= 8:
            raise ValueError(f"bits must be an integer from 1 to 8 for code 'prod', got {bits!r}")
        if sketch not in ("gaussian", "orthogonal"):
            raise ValueError(f"sketch must be 'gaussian' or 'orthogonal', got {sketch!r}")
        self.d, self.bits, self.sketch, self.seed = d, int(bits), sketch, seed
        self.centroids = lloyd_max(d, self.bits - 1) if self.bits > 1 else np.zeros(1, dtype=np.float32)
        self.mse_size = -(-d * (self.bits - 1) // 8)
        self.code_size = self.mse_size + -(-d // 8)
        if sketch == "gaussian":
            self.const = math.sqrt(math.pi / 2) / d
        else:
            self._rotation = HadamardRotation(d, seed, _HADAMARD_STREAM)
            mean_abs = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
            self.const = 1.0 / (d**1.5 * mean_abs)

    # Made when it is first used: a file of a few hundred bytes may ask for any d.
    @cached_property
    def _matrix(self):
        """The Gaussian sketch, float32 [d, d]."""
        return gaussian_matrix(self.d, self.seed, _GAUSSIAN_STREAM).astype(np.float32)

    def encode(self, y):
        """Encode rotated rows.

        Parameters
        ----------
        y : numpy.ndarray
            float32 [n, d], rows of squared length d (or zero).

        Returns
        -------
        codes : numpy.ndarray
            uint8 [n, code_size].
        residual_scale : numpy.ndarray
            float64 [n], const times the length of the scalar part's error.
        """
        n = len(y)
        codes = np.zeros((n, self.code_size), dtype=np.uint8)
        lengths = np.zeros(n)
        for start in range(0, n, _CHUNK):
            part = slice(start, start + _CHUNK)
            codes[part], lengths[part] = self._encode_chunk(np.ascontiguousarray(y[part], dtype=np.float32))
        return codes, self.const * lengths

    def decode_parts(self, codes):
        """Scalar part float32 [n, d] and signs z float32 [n, d] of +-1, of codes uint8 [n, code_size]."""
        d, b = self.d, self.bits - 1
        bits = np.unpackbits(codes[:, self.mse_size :], axis=1, count=d, bitorder="little")
        z = bits.astype(np.float32) * 2 - 1
        if b == 0:
            return np.zeros_like(z), z
        stream = np.unpackbits(codes[:, : self.mse_size], axis=1, count=d * b, bitorder="little")
        index = stream.reshape(-1, d, b) @ (1 << np.arange(b, dtype=np.uint8))
        return self.centroids[index], z

    def project(self, q_rot):
        """Sketched queries S q, float32 [nq, d], of rotated queries float32 [nq, d]."""
        if self.sketch == "gaussian":
            return np.asarray(q_rot, dtype=np.float32) @ self._matrix.T
        return self._rotation.rotate(q_rot) * np.float32(math.sqrt(self.d))

    def unproject(self, z):
        """Transpose of `project`: S^T z, float32 [n, d]; times residual_scale it reconstructs the error."""
        if self.sketch == "gaussian":
            return np.asarray(z, dtype=np.float32) @ self._matrix
        return self._rotation.unrotate(z) * np.float32(math.sqrt(self.d))

    def _encode_chunk(self, y):
        """Codes uint8 [n, code_size] and lengths of the error, float64 [n]."""
        b, residual = self.bits - 1, y
        parts = []
        if b > 0:
            index = np.searchsorted(boundaries(self.centroids), y).astype(np.uint8)
            residual = y - self.centroids[index]
            stream = np.unpackbits(index[:, :, None], axis=2, count=b, bitorder="little")
            parts.append(np.packbits(stream.reshape(len(y), -1), axis=1, bitorder="little"))
        # Only the sign matters, so the sketch's factor sqrt(d) is left out.
        sketched = residual @ self._matrix.T if self.sketch == "gaussian" else self._rotation.rotate(residual)
        parts.append(np.packbits(sketched >= 0, axis=1, bitorder="little"))
        return np.concatenate(parts, axis=1), np.sqrt(_squared_lengths(residual))


def _squared_lengths(rows):
    """Squared lengths float64 [n] of float32 rows, with the eight partial sums of the core's norms."""
    lanes = np.zeros((len(rows), 8))
    for start in range(0, rows.shape[1], 8):
        block = rows[:, start : start + 8].astype(np.float64)
        lanes[:, : block.shape[1]] += block * block
    lanes = lanes[:, :4] + lanes[:, 4:]
    lanes = lanes[:, :2] + lanes[:, 2:]
    return lanes[:, 0] + lanes[:, 1]
