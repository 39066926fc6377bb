"""The whole way from vectors to codes and scalars and back, with the product's defaults."""

import numpy as np

from tqcore.reference import chain, mse, packing, prod, rotation, scan

__all__ = ["Quantizer"]


class Quantizer:
    """What `tqcore.Quantizer` computes, in plain NumPy, from given tables.

    Parameters
    ----------
    d : int
        Dimension.
    bits : float
        Bits per dimension.
    code : str
        "chain", "mse" or "prod".
    centroids : numpy.ndarray or None
        float32 [2**bits] for "mse", [2**(bits - 1)] for "prod" above one bit.
    table : numpy.ndarray or None
        float32 [q, memory, 16] for "chain".
    rate : tuple of int or None
        (p, q) for "chain": p nibbles per q dimensions.
    rotation, seed, scale, sketch, store_norm, normalize
        As in `tqcore.Quantizer`.
    """

    def __init__(
        self,
        d,
        bits,
        code="chain",
        *,
        centroids=None,
        table=None,
        rate=None,
        rotation="hadamard",
        seed=0,
        scale="unbiased",
        sketch="orthogonal",
        store_norm=False,
        normalize=False,
    ):
        self.d, self.bits, self.code = d, bits, code
        self.centroids, self.table, self.rate = centroids, table, rate
        self.rotation, self.seed, self.scale, self.sketch = rotation, seed, scale, sketch
        self.store_norm, self.normalize = store_norm, normalize

    def rotate(self, x):
        """Rotated rows, float32 [n, d]; the dense rotation is computed in float64 and rounded once."""
        if self.rotation == "haar":
            return (x.astype(np.float64) @ rotation.haar_matrix(self.d, self.seed).T).astype(np.float32)
        return rotation.hadamard_rotate(x, rotation.hadamard_signs(self.d, self.seed))

    def unrotate(self, y):
        """Inverse of `rotate`, float32 [n, d]."""
        if self.rotation == "haar":
            return (y.astype(np.float64) @ rotation.haar_matrix(self.d, self.seed)).astype(np.float32)
        return rotation.hadamard_rotate(y, rotation.hadamard_signs(self.d, self.seed), inverse=True)

    def encode(self, x):
        """(codes uint8 [n, code_size], scalars float32 [n, n_scalars]) of float32 rows [n, d]."""
        norms = rotation.norm(x)
        y = self.rotate(rotation.normalize(x, norms))
        if self.normalize:
            norms = np.where(norms > 0, 1.0, 0.0)
        codes = self.encode_rotated(y)
        if self.code == "prod":
            residual_scale = self._prod_parts(y)[2]
            base = norms / np.sqrt(np.float64(self.d))
            columns = [base, base * residual_scale]
        else:
            columns = [scan.scale(norms, y, self.decode_rotated(codes), self.scale)]
        if self.store_norm:
            columns.append(norms * norms)
        with np.errstate(over="ignore"):
            return codes, np.stack([np.asarray(c).astype(np.float32) for c in columns], axis=1)

    def encode_rotated(self, y):
        """Codes, uint8 [n, code_size], of rotated rows float32 [n, d] of squared length d."""
        if self.code == "chain":
            return packing.pack_nibbles(chain.chain_encode(y, self.table, *self.rate))
        if self.code == "mse":
            return packing.pack_bits(mse.mse_encode(y, self.centroids), int(self.bits))
        index, positive, _ = self._prod_parts(y)
        signs = packing.pack_bits(positive.astype(np.int64), 1)
        if index.size == 0 and self.bits == 1:
            return signs
        return np.concatenate([packing.pack_bits(index, int(self.bits) - 1), signs], axis=1)

    def decode_rotated(self, codes):
        """Rotated reconstruction, float32 [n, d], of chain and mse codes, before the scale."""
        if self.code == "chain":
            count = chain.nibble_count(self.d, *self.rate)
            return chain.chain_decode(packing.unpack_nibbles(codes, count), self.table, self.d, *self.rate)
        return mse.mse_decode(packing.unpack_bits(codes, self.d, int(self.bits)), self.centroids)

    def decode(self, codes, scalars):
        """Reconstructed rows, float32 [n, d]."""
        if self.code != "prod":
            return self.unrotate(scalars[:, :1] * self.decode_rotated(codes))
        yhat, z = self.prod_parts(codes)
        s = scalars.astype(np.float64)
        sketched = z @ prod.sketch_matrix(self.d, self.sketch, self.seed)
        return self.unrotate((s[:, :1] * yhat + s[:, 1:2] * sketched).astype(np.float32))

    def prod_parts(self, codes):
        """Scalar part float32 [n, d] and signs float64 [n, d] of +-1, of prod codes."""
        size = -(-self.d * (int(self.bits) - 1) // 8)
        z = 2.0 * packing.unpack_bits(codes[:, size:], self.d, 1) - 1.0
        if size == 0:
            return np.zeros(z.shape, dtype=np.float32), z
        index = packing.unpack_bits(codes[:, :size], self.d, int(self.bits) - 1)
        return mse.mse_decode(index, self.centroids), z

    def lut(self, q):
        """Nibble scores, float64 [nq, J, 16], of queries [nq, d]; chain, and mse of 1, 2, 4 bits."""
        return self._lut(self.rotate(q))

    def _lut(self, rotated):
        if self.code == "chain":
            return chain.chain_lut(rotated, self.table, self.d, *self.rate)
        return mse.mse_lut(rotated, self.centroids)

    def score(self, q, codes, scalars, metric):
        """Scores float64 [nq, n] of coded rows for queries float32 [nq, d]; as `scan.score`."""
        return scan.score(q, self._inner(self.rotate(q), codes), scalars, metric)

    def _inner(self, rotated, codes):
        """Inner products float64 [nq, n] for each scale column; codes of nibbles by their tables, in double."""
        if self.code == "chain" or (self.code == "mse" and self.bits in (1, 2, 4)):
            return [_table_sums(self._lut(rotated), codes)]
        if self.code == "mse":
            return [_products(rotated, self.decode_rotated(codes))]
        yhat, z = self.prod_parts(codes)
        return [_products(rotated, yhat), _products(prod.project(rotated, self.sketch, self.seed), z)]

    def _prod_parts(self, y):
        return prod.prod_encode(y, self.centroids, self.sketch, self.seed)


def _products(queries, rows):
    """Inner products float64 [nq, n]."""
    return np.stack([rotation.dot(rows, q) for q in queries]) if len(queries) else np.zeros((0, len(rows)))


def _table_sums(lut, codes):
    """Sums float64 [nq, n] of lut [nq, J, 16] over the nibbles of codes, as `rotation.dot` orders them."""
    nibbles = packing.unpack_nibbles(codes, lut.shape[1])
    places = np.arange(lut.shape[1])
    ones = np.ones(lut.shape[1])
    rows = [rotation.dot(table[places, nibbles], ones) for table in lut]
    return np.stack(rows) if rows else np.zeros((0, len(codes)))
