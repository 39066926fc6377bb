"""Sets made on the spot: scikit-learn's digits and seeded Gaussians."""

from __future__ import annotations

from typing import cast

import numpy as np

from ..errors import BenchError
from .dataset import Dataset, split_rows
from .options import SourceOptions

__all__ = ["KINDS", "gaussian_rows", "load_digits", "load_synthetic"]

KINDS = ("isotropic", "clustered", "uncentred")


def load_digits(options: SourceOptions) -> Dataset:
    """1,797 images of digits, d = 64, pixel values 0 to 16."""
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise BenchError("source digits needs scikit-learn: pip install 'tqann[bench]'") from error
    # with this option it returns images and their digits, otherwise one object
    images, _ = cast("tuple[np.ndarray, np.ndarray]", sklearn_digits(return_X_y=True))
    pixels = images.astype(np.float32)
    base, queries, held_out = split_rows(pixels, options.nq or 197, 400, options.seed)
    return Dataset("digits", "scikit-learn digits, 8 x 8 pixels", base, queries, "l2", held_out).limited(
        options
    )


def load_synthetic(options: SourceOptions) -> Dataset:
    """Gaussian vectors: isotropic; clustered with decaying variances; the same far from the origin."""
    if options.d < 8:
        raise BenchError(f"d must be at least 8, got {options.d}")
    n, nq, d = options.n or 10000, options.nq or 500, options.d
    if n < 1 or nq < 1:
        raise BenchError(f"n and nq must be at least 1, got {n} and {nq}")
    x = gaussian_rows(options.kind, 2 * n + nq, d, options.seed)
    description = f"synthetic {options.kind} unit vectors, d = {d}, seed {options.seed}"
    name = f"synthetic-{options.kind}-{d}"
    return Dataset(name, description, x[:n], x[n : n + nq], "ip", x[n + nq :]).limited(options)


def gaussian_rows(kind: str, total: int, d: int, seed: int) -> np.ndarray:
    """Unit rows float32 [total, d] of a kind in `KINDS`.

    Raises
    ------
    BenchError
        For an unknown kind.
    """
    if kind not in KINDS:
        raise BenchError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((total, d), dtype=np.float32)
    if kind != "isotropic":
        spread = (np.arange(1, d + 1) ** -0.5).astype(np.float32)
        centres = rng.standard_normal((64, d), dtype=np.float32) * spread
        x = x * spread * np.float32(0.7) + centres[rng.integers(64, size=total)]
    if kind == "uncentred":
        mean = rng.standard_normal(d, dtype=np.float32)
        x += mean * np.float32(1.5 * np.linalg.norm(x, axis=1).mean() / np.linalg.norm(mean))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x
