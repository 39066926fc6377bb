import math
from functools import cache

import numpy as np
import pytest

from tqcore import Quantizer
from tqcore.codebook import distortion

D = 128
SEEDS = 60


OVERLAP = 0.8


@cache
def pairs():
    """Unit rows and, for each, a unit row at a right angle, float64 [SEEDS, 200, D] twice."""
    x, y = np.random.default_rng(0).standard_normal((2, SEEDS, 200, D))
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    y -= np.sum(x * y, axis=2, keepdims=True) * x
    return x, y / np.linalg.norm(y, axis=2, keepdims=True)


def errors_of_pairs(code, bits, **options):
    """Errors of estimated inner products 0 and OVERLAP, float64 [SEEDS, 200] each.

    Every row has queries of its own, and every seed a rotation of its own.
    """
    aside, along = np.empty((2, SEEDS, 200))
    for seed, (x, y) in enumerate(zip(*pairs(), strict=True)):
        q = Quantizer(D, bits, code, seed=seed, **options)
        decoded = q.decode(*q.encode(x.astype(np.float32)))
        aside[seed] = np.sum(decoded * y, axis=1)
        along[seed] = (
            OVERLAP * np.sum(decoded * x, axis=1) + math.sqrt(1 - OVERLAP**2) * aside[seed] - OVERLAP
        )
    return aside, along


def bias(errors):
    """Mean error in standard errors; the pairs of a seed share its rotation, so seeds are the sample."""
    means = errors.mean(axis=1)
    return means.mean() / (means.std(ddof=1) / math.sqrt(means.size))


@pytest.mark.parametrize("sketch", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_prod_unbiased_with_the_variance_of_theory(bits, sketch):
    aside, along = errors_of_pairs("prod", bits, sketch=sketch)
    assert abs(bias(aside)) < 3
    assert abs(bias(along)) < 3
    share = distortion(D, bits - 1) if bits > 1 else 1.0
    factor = math.pi / 2 - (sketch == "orthogonal")
    assert np.mean(aside**2) * D == pytest.approx(factor * share, rel=0.05)


@pytest.mark.parametrize(
    ("code", "bits"),
    [("mse", 1), ("mse", 2), ("mse", 4), ("mse", 7), ("chain", 1), ("chain", 2.5), ("chain", 4)],
)
def test_scale_unbiased(code, bits):
    aside, along = errors_of_pairs(code, bits)
    assert abs(bias(aside)) < 3
    assert abs(bias(along)) < 3
    if code == "mse":
        theory = distortion(D, bits) / (1 - distortion(D, bits)) / (D - 1)
        assert np.mean(aside**2) == pytest.approx(theory, rel=0.05)
    # The paper's scale shrinks every estimate by the distortion.
    assert bias(errors_of_pairs(code, bits, scale="norm")[1]) < -4
