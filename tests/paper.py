"""TurboQuant (arXiv 2504.19874), Algorithms 1 and 2, line by line; shares no code with the package.

Vectors are columns in the paper; here they are the rows of arrays [n, d], so Pi x becomes ``x @ Pi.T``.
"""

import numpy as np
from scipy import integrate, special


def sphere_density(t, d):
    """Lemma 1: density of a coordinate of a uniform point on the unit sphere of R^d."""
    log_constant = special.gammaln(d / 2) - special.gammaln((d - 1) / 2) - 0.5 * np.log(np.pi)
    return np.exp(log_constant + (d - 3) / 2 * np.log1p(-np.square(t)))


def codebook(d, b, cells=400_000):
    """Equation (4): centroids that minimise C(f_X, b), by Lloyd's iteration over a fine grid; float64 [2**b].

    The density is taken as constant within a grid cell, which limits the precision to about 1e-9.
    """
    reach = min(1.0, 15 / np.sqrt(d))
    step = 2 * reach / cells
    t = (np.arange(cells) + 0.5) * step - reach
    f = sphere_density(t, d)
    mass, moment = (np.concatenate([[0.0], np.cumsum(v)]) for v in (f, f * t))
    c = np.interp((np.arange(2**b) + 0.5) / 2**b, mass[1:] / mass[-1], t)
    for _ in range(20_000):
        edge = ((c[1:] + c[:-1]) / 2 + reach) / step
        whole = edge.astype(int)
        share = edge - whole
        sums = []
        for total in (moment, mass):
            below = total[whole] + share * (total[whole + 1] - total[whole])
            sums.append(np.diff(below, prepend=0.0, append=total[-1]))
        moved = sums[0] / sums[1]
        if np.max(np.abs(moved - c)) < 1e-13:
            break
        c = moved
    return c


def mse_cost(c, d):
    """Equation (4): d times C(f_X, b) of centroids `c`, the squared error of a unit vector (Theorem 1)."""
    edges = np.concatenate([[-1.0], (c[1:] + c[:-1]) / 2, [1.0]])
    reach = min(1.0, 15 / np.sqrt(d))
    edges = np.clip(edges, -reach, reach)
    total = 0.0
    for v, *cell in zip(c, edges[:-1], edges[1:], strict=True):
        cost, _ = integrate.quad(
            lambda t, v=v: (t - v) ** 2 * sphere_density(t, d), *cell, epsabs=0, epsrel=1e-10
        )
        total += cost
    return d * total


def random_rotation(d, rng):
    """Algorithm 1, line 2: the orthogonal factor of a Gaussian matrix, float64 [d, d]."""
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    return q * np.sign(np.diag(r))


class TurboQuantMSE:
    """Algorithm 1, TurboQuant_mse: optimised for squared error."""

    def __init__(self, d, b, rng=None, rotation=None, centroids=None):
        self.d, self.b = d, b
        self.rotation = random_rotation(d, rng) if rotation is None else rotation  # line 2
        self.centroids = codebook(d, b) if centroids is None else centroids  # line 3

    def quant(self, x):
        """Lines 4-7: indices int [n, d] of unit rows x [n, d]."""
        y = x @ self.rotation.T  # line 5
        return np.abs(y[:, :, None] - self.centroids).argmin(axis=2)  # line 6

    def dequant(self, index):
        """Lines 8-11: unit-scale rows float64 [n, d]."""
        y = self.centroids[index]  # line 9
        return y @ self.rotation  # line 10


class QJL:
    """Definition 1: z = sign(S x) with iid N(0, 1) entries in S, and its inverse sqrt(pi/2)/d S^T z."""

    def __init__(self, d, rng=None, sketch=None):
        self.d = d
        self.sketch = rng.standard_normal((d, d)) if sketch is None else sketch

    def quant(self, x):
        """Signs +-1, float64 [n, d]; sign(0) is taken as +1."""
        return np.where(x @ self.sketch.T >= 0, 1.0, -1.0)

    def dequant(self, z):
        """Rows float64 [n, d], unbiased for unit rows (Lemma 4)."""
        return np.sqrt(np.pi / 2) / self.d * (z @ self.sketch)


class TurboQuantProd:
    """Algorithm 2, TurboQuant_prod: unbiased, from b - 1 bits of Algorithm 1 and QJL of its error."""

    def __init__(self, d, b, rng=None, rotation=None, centroids=None, sketch=None):
        self.mse = TurboQuantMSE(d, b - 1, rng, rotation, centroids)  # line 2
        self.qjl = QJL(d, rng, sketch)  # line 3

    def quant(self, x):
        """Lines 4-8: (indices int [n, d], signs [n, d], length of the error [n]) of unit rows x [n, d]."""
        index = self.mse.quant(x)  # line 5
        r = x - self.mse.dequant(index)  # line 6
        return index, self.qjl.quant(r), np.linalg.norm(r, axis=1)  # lines 7 and 8

    def dequant(self, index, z, gamma):
        """Lines 9-12: rows float64 [n, d]."""
        return self.mse.dequant(index) + gamma[:, None] * self.qjl.dequant(z)  # lines 10 to 12
