"""Norms, normalisation and the two random rotations."""

import numpy as np

__all__ = ["dot", "gaussian_matrix", "haar_matrix", "hadamard_rotate", "hadamard_signs", "norm", "normalize"]

_ROUNDS = 3


def dot(a, b):
    """Row-wise inner products with eight float64 partial sums, the order every level of the core keeps.

    Parameters
    ----------
    a, b : numpy.ndarray
        float32 [n, d], or one of them [d].

    Returns
    -------
    numpy.ndarray
        float64 [n].
    """
    products = np.asarray(a, dtype=np.float64) * np.asarray(b, dtype=np.float64)
    n, d = products.shape
    lanes = np.zeros((n, 8))
    for start in range(0, d, 8):
        block = products[:, start : start + 8]
        lanes[:, : block.shape[1]] += block
    lanes[:, :4] += lanes[:, 4:]
    lanes[:, :2] += lanes[:, 2:4]
    return lanes[:, 0] + lanes[:, 1]


def norm(x):
    """Euclidean norms, float64 [n], of float32 rows [n, d]."""
    return np.sqrt(dot(x, x))


def normalize(x, norms):
    """Rows scaled to squared length d, float32 [n, d]; a row of norm 0 becomes zeros.

    Parameters
    ----------
    x : numpy.ndarray
        float32 [n, d].
    norms : numpy.ndarray
        float64 [n], from `norm`.
    """
    d = x.shape[1]
    with np.errstate(divide="ignore"):
        gain = np.where(norms > 0, np.sqrt(np.float64(d)) / norms, 0.0)
    return (x.astype(np.float64) * gain[:, None]).astype(np.float32)


def hadamard_signs(d, seed, stream=0):
    """Signs of the Hadamard rotation, float32 [3, 2, d] of +-1, from Philox with key (seed, stream)."""
    bit_generator = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    raw = bit_generator.random_raw(-(-2 * _ROUNDS * d // 64)).astype("<u8")
    bits = np.unpackbits(raw.view(np.uint8), bitorder="little")[: 2 * _ROUNDS * d]
    return (1.0 - 2.0 * bits).astype(np.float32).reshape(_ROUNDS, 2, d)


def hadamard_rotate(y, signs, inverse=False):
    """Three rounds of random signs and Hadamard transforms on two overlapping blocks, in float32.

    The blocks are the first and the last p coordinates, p the largest power of two not above d. Between
    rounds the two halves are mixed, so that a coordinate outside the overlap still reaches all others.

    Parameters
    ----------
    y : numpy.ndarray
        float32 [n, d].
    signs : numpy.ndarray
        float32 [3, 2, d] of +-1.
    inverse : bool
        Undo the rotation instead.

    Returns
    -------
    numpy.ndarray
        float32 [n, d].
    """
    y = np.array(y, dtype=np.float32)
    d = y.shape[1]
    p = 1 << (d.bit_length() - 1)
    steps = []
    for r in range(_ROUNDS):
        steps += [("signs", r, 0), ("transform", slice(0, p))]
        if d > p:
            steps += [("signs", r, 1), ("transform", slice(d - p, d))]
            if r < _ROUNDS - 1:
                steps += [("mix",)]
    for name, *where in reversed(steps) if inverse else steps:
        if name == "signs":
            y *= signs[tuple(where)]
        elif name == "transform":
            y[:, where[0]] = _hadamard(y[:, where[0]])
        else:
            _mix_halves(y)
    return y


def _hadamard(y):
    """Orthonormal Walsh-Hadamard transform of rows [n, p], butterflies of stride 1, 2, 4, ..."""
    n, p = y.shape
    stride = 1
    while stride < p:
        pairs = y.reshape(n, p // (2 * stride), 2, stride)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        y = np.stack([a + b, a - b], axis=2).reshape(n, p)
        stride *= 2
    return y * np.float32(1.0 / np.sqrt(np.float64(p)))


def _mix_halves(y):
    """(a, b) -> (a + b, a - b) / sqrt(2) on the two halves, in place; its own inverse."""
    h = y.shape[1] // 2
    c = np.float32(np.sqrt(0.5))
    a, b = y[:, :h].copy(), y[:, h : 2 * h].copy()
    y[:, :h] = (a + b) * c
    y[:, h : 2 * h] = (a - b) * c


def gaussian_matrix(d, seed, stream):
    """N(0, 1) samples, float64 [d, d], by Box and Muller's method from Philox with key (seed, stream)."""
    raw = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(d * d + d * d % 2)
    u = (raw >> np.uint64(11)) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-u[0::2]))
    angle = 2.0 * np.pi * u[1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[: d * d].reshape(d, d)


def haar_matrix(d, seed):
    """Uniformly random orthogonal matrix, float64 [d, d], by Gram and Schmidt's method on Gaussian columns.

    The rotation of rows y is ``y @ matrix.T``.
    """
    q = gaussian_matrix(d, seed, 1)
    for j in range(d):
        for _ in range(2):  # twice is enough for orthogonality to rounding
            q[:, j] -= q[:, :j] @ (q[:, :j].T @ q[:, j])
        q[:, j] /= np.sqrt(q[:, j] @ q[:, j])
    return q
