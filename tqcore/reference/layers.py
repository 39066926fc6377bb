"""The layered code: a chain of the rows and a chain of its rotated, scaled error."""

import math

import numpy as np

from tqcore.reference import chain, packing, rotation

__all__ = ["Layers"]

_STREAM = 4


class Layers:
    """What `tqcore.layers.Layers` computes, in plain NumPy, from given tables.

    Parameters
    ----------
    d : int
        Dimension.
    tables : list of numpy.ndarray
        float32 [q, memory, 16] of both chains.
    rates : list of tuple of int
        (p, q) of both chains.
    error : float
        Mean squared error a dimension of the first chain.
    seed : int
        Of the rotation of the errors.
    """

    def __init__(self, d, tables, rates, error, seed=0):
        self.d, self.tables, self.rates = d, tables, rates
        self.gain = np.float32(math.sqrt(error))
        self.signs = rotation.hadamard_signs(d, seed, _STREAM)

    def encode(self, y):
        """Codes, uint8 [n, code_size], of rotated rows float32 [n, d]."""
        first = chain.chain_encode(y, self.tables[0], *self.rates[0])
        error = y - chain.chain_decode(first, self.tables[0], self.d, *self.rates[0])
        scaled = rotation.hadamard_rotate(error, self.signs) / self.gain
        second = chain.chain_encode(scaled, self.tables[1], *self.rates[1])
        return np.concatenate([packing.pack_nibbles(first), packing.pack_nibbles(second)], axis=1)

    def decode(self, codes):
        """y_hat float64 [n, d]."""
        size = (chain.nibble_count(self.d, *self.rates[0]) + 1) // 2
        first, second = (
            chain.chain_decode(
                packing.unpack_nibbles(part, chain.nibble_count(self.d, *rate)), table, self.d, *rate
            )
            for part, table, rate in zip(
                (codes[:, :size], codes[:, size:]), self.tables, self.rates, strict=True
            )
        )
        finer = rotation.hadamard_rotate((self.gain * second).astype(np.float32), self.signs, inverse=True)
        return first.astype(np.float64) + finer
