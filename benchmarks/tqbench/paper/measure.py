"""Distortion and inner products of the codes on random unit vectors, over several rotations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tqcore.quantizer import Quantizer

__all__ = ["CODES", "Measured", "PaperSettings", "measure", "unit_rows"]

# name -> arguments of the quantizer
CODES: dict[str, dict[str, Any]] = {
    "mse": {"code": "mse", "scale": "norm"},
    "chain": {"code": "chain", "scale": "norm"},
    "mse + scale": {"code": "mse", "scale": "unbiased"},
    "chain + scale": {"code": "chain", "scale": "unbiased"},
    "prod": {"code": "prod", "sketch": "gaussian"},
    "prod, orthogonal": {"code": "prod", "sketch": "orthogonal"},
}


@dataclass(frozen=True)
class PaperSettings:
    """How much is measured.

    Parameters
    ----------
    d : int
        Dimensions of the random vectors.
    n, nq : int
        Unit vectors and queries a rotation.
    rotations : int
        Rotations and sketches: the paper's expectations are over them as well as over vectors.
    seed : int
        Seed of everything.

    Raises
    ------
    ValueError
        When the seed is negative.
    """

    d: int = 512
    n: int = 4096
    nq: int = 512
    rotations: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True)
class Measured:
    """A code at one width: means over vectors and rotations.

    Parameters
    ----------
    distortion : float
        Squared error of a unit vector.
    slope : float
        Least-squares slope of estimated over true inner products, through the origin; 1 when unbiased.
    slope_error : float
        Standard error of `slope`, pairs taken as independent.
    variance : float
        d times the mean squared error of inner products with unit queries.
    """

    distortion: float
    slope: float
    slope_error: float
    variance: float


def unit_rows(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform points of the unit sphere, float32 [n, d]."""
    rows = rng.standard_normal((n, d), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure(settings: PaperSettings, bits: int) -> Iterator[tuple[str, Measured]]:
    """Every code of `CODES` at `bits`, all on the same vectors and queries; yields name and result."""
    s = settings
    data = []
    for number in range(s.rotations):
        rng = np.random.default_rng([s.seed, number])
        data.append((unit_rows(s.n, s.d, rng), unit_rows(s.nq, s.d, rng)))
    for name, options in CODES.items():
        sums = np.zeros(4)
        for number, (x, q) in enumerate(data):
            quantizer = Quantizer(s.d, bits, seed=s.seed + number, **options)
            sums += _sums(x, quantizer.decode(*quantizer.encode(x)), q)
        error, cross, square, product_error = sums
        yield (
            name,
            Measured(
                distortion=error / (s.n * s.rotations),
                slope=cross / square,
                slope_error=math.sqrt(product_error / (s.n * s.nq * s.rotations * square)),
                variance=s.d * product_error / (s.n * s.nq * s.rotations),
            ),
        )


def _sums(x: np.ndarray, decoded: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Sums over all pairs: |x - x_hat|^2, <q, x><q, x_hat>, <q, x>^2 and <q, x - x_hat>^2, float64 [4]."""
    exact, found = x @ q.T, decoded @ q.T
    pairs = ((x - decoded, x - decoded), (exact, found), (exact, exact), (exact - found, exact - found))
    return np.array([np.sum(a * b, dtype=np.float64) for a, b in pairs])
