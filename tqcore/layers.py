"""The layered code: a coarse chain, and a second chain of what it leaves, so that the first alone already ranks."""

import math

import numpy as np

from tqcore import _core
from tqcore.chain import chain_code, chain_mse, mixed_code
from tqcore.config import layer_bits
from tqcore.rotation import HadamardRotation

__all__ = ["Layers"]

_STREAM = 4


class Layers:
    """Codes of rotated rows of squared length d in two layers.

    The error of the first chain is rotated again, which makes its coordinates normal, divided by the root of the
    chain's known mean squared error, and written by the second chain: ``y_hat = y1 + gain * R^T y2``.

    Parameters
    ----------
    d : int
        Dimension, at least 8.
    bits : float
        From 3 to 8, both layers together; see `tqcore.config.layer_bits`.
    memory : int
        Of both chains.
    seed : int
        Seed of the rotation of the errors.

    Attributes
    ----------
    core : tqcore._core.Code
        Both chains side by side, over 2 d coordinates: those of the rows, then those of the rotated errors. Its
        `head_words` are the 32-bit words of a row that lie in the first layer.
    head_share : float
        Of a row's energy that these words hold.
    """

    def __init__(self, d, bits, memory, seed):
        coarse, fine = layer_bits(bits)
        self._first, self._second = chain_code(d, coarse, memory), mixed_code(d, fine, memory)
        self._rotation = HadamardRotation(d, seed, _STREAM)
        error = chain_mse(coarse, memory)
        self.gain = np.float32(math.sqrt(error))
        head_words = self._first.code_size // 4
        self.core = _core.join_codes([self._first, self._second], head_words)
        self.head_share = (1 - error) * 4 * head_words / self._first.code_size

    def encode(self, y, threads=0):
        """Encode rotated rows.

        Parameters
        ----------
        y : numpy.ndarray
            float32 [n, d], rows of squared length d (or zero).
        threads : int
            0 takes the default.

        Returns
        -------
        codes : numpy.ndarray
            uint8 [n, core.code_size].
        dots : numpy.ndarray
            float64 [n], <y, y_hat>.
        """
        first, dots, _ = _core.encode(self._first, y, None, threads)
        error = y - _core.decode(self._first, first, threads)
        second, _, _ = _core.encode(self._second, self._rotation.rotate(error) / self.gain, None, threads)
        finer = self.gain * _core.decode(self._second, second, threads)
        dots = dots[:, 0] + _core.row_dots(self._rotation.rotate(y), finer, threads)
        return np.concatenate([first, second], axis=1), dots

    def decode(self, codes, threads=0):
        """y_hat float32 [n, d] of codes uint8 [n, core.code_size]."""
        d = self._first.d
        y = _core.decode(self.core, codes, threads)
        return y[:, :d] + self._rotation.unrotate(self.gain * y[:, d:])

    def project(self, q):
        """Queries in the coordinates of `core`, float32 [nq, 2 d], of rotated queries float32 [nq, d]."""
        return np.concatenate([q, self.gain * self._rotation.rotate(q)], axis=1)
