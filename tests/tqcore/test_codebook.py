import numpy as np
import pytest
from scipy import integrate, special

import paper
from tqcore.codebook import boundaries, distortion, lloyd_max

DIMS = [64, 128, 200, 384, 768, 1536]
# Lloyd-Max distortions of N(0, 1), 1 to 8 bits; the first five as in Max (1960) and Paez and Glisson (1972).
NORMAL = [0.36338, 0.117482, 0.0345478, 0.00950101, 0.00250467, 0.00064424, 0.000163478, 4.11851e-05]


@pytest.mark.parametrize("bits", range(1, 9))
def test_limit_is_the_normal_codebook(bits):
    assert distortion(None, bits) == pytest.approx(NORMAL[bits - 1], rel=1e-5)
    assert distortion(10**7, bits) == pytest.approx(distortion(None, bits), rel=1e-5)
    np.testing.assert_allclose(lloyd_max(10**7, bits), lloyd_max(None, bits), rtol=1e-5)


def error_of(y, d, bits):
    c = lloyd_max(d, bits)
    return np.mean((y - c[np.searchsorted(boundaries(c), y)]) ** 2, dtype=np.float64)


@pytest.mark.parametrize("d", DIMS)
def test_distortion_within_one_percent_of_theory(d):
    # Quantiles of the exact marginal: at 8 bits one outlier shifts a random sample by 1%.
    square = special.betaincinv(0.5, (d - 1) / 2, (np.arange(500_000) + 0.5) / 500_000)
    y = np.sqrt(d * square).astype(np.float32)
    for bits in range(1, 9):
        assert error_of(y, d, bits) == pytest.approx(distortion(d, bits), rel=0.01)
        # The marginal of the sphere is narrower than N(0, 1): its distortion approaches from below, as 1 / d.
        assert 1 - (bits + 1.5) / d < distortion(d, bits) / NORMAL[bits - 1] < 1


@pytest.mark.parametrize("d", [64, 1536])
def test_distortion_of_points_on_the_sphere(d):
    y = np.random.default_rng(d).standard_normal((1_200_000 // d, d))
    y *= np.sqrt(d) / np.linalg.norm(y, axis=1, keepdims=True)
    for bits in range(1, 6):
        assert error_of(y.astype(np.float32).ravel(), d, bits) == pytest.approx(distortion(d, bits), rel=0.01)


@pytest.mark.parametrize("d", [8, 9, 64, 100, 1536])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_distortion_against_adaptive_integration(d, bits):
    c = lloyd_max(d, bits).astype(np.float64) / np.sqrt(d)
    assert distortion(d, bits) == pytest.approx(paper.mse_cost(c, d), rel=1e-7)


@pytest.mark.parametrize(("d", "bits"), [(8, 1), (8, 3), (64, 2), (200, 4), (1536, 3), (1536, 5)])
def test_centroids_against_the_paper(d, bits):
    np.testing.assert_allclose(lloyd_max(d, bits), paper.codebook(d, bits) * np.sqrt(d), atol=2e-5)


@pytest.mark.parametrize("d", [8, 9, 33, 200, 1536])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_centroids_are_the_means_of_their_cells(d, bits):
    c = lloyd_max(d, bits).astype(np.float64) / np.sqrt(d)
    edges = np.concatenate([[-1.0], (c[1:] + c[:-1]) / 2, [1.0]])
    reach = min(1.0, 15 / np.sqrt(d))
    for k in {0, 1, c.size // 2, c.size - 1}:
        cell = np.clip(edges[k : k + 2], -reach, reach)
        mass = integrate.quad(paper.sphere_density, *cell, args=(d,), epsabs=0, epsrel=1e-12)[0]
        moment = integrate.quad(lambda t: t * paper.sphere_density(t, d), *cell, epsabs=0, epsrel=1e-12)[0]
        assert moment / mass == pytest.approx(c[k], rel=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("d", [8, 100, 1536, None])
def test_form(d, bits):
    c = lloyd_max(d, bits)
    assert c.dtype == np.float32
    assert c.shape == (2**bits,)
    assert np.all(np.diff(c) > 0)
    np.testing.assert_array_equal(c, -c[::-1])
    assert d is None or c[-1] < np.sqrt(d)
    edges = boundaries(c)
    assert edges.dtype == np.float32
    assert edges.shape == (2**bits - 1,)
    assert edges[2 ** (bits - 1) - 1] == 0
    c[:] = 0
    assert lloyd_max(d, bits)[-1] > 0


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_against_faiss(bits):
    faiss = pytest.importorskip("faiss", minversion="1.15")
    d = 64  # sqrt(d) is a power of two, so that FAISS's scaling by 1 / sqrt(d) loses nothing
    quantizer = faiss.ScalarQuantizer(d, getattr(faiss.ScalarQuantizer, f"QT_{bits}bit_tqmse"))
    quantizer.train(np.zeros((1, d), dtype=np.float32))
    theirs = faiss.vector_to_array(quantizer.trained)[: 2**bits] * np.float32(8)
    ours = lloyd_max(None, bits)
    if bits < 8:
        np.testing.assert_array_equal(theirs, ours)
        return
    # FAISS's 8-bit table is no fixed point of Lloyd's iteration: ours has to be the better one.
    y = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    error, their_error = (np.mean((y - c[np.searchsorted(boundaries(c), y)]) ** 2) for c in (ours, theirs))
    assert error < 1.05 * distortion(None, 8) < their_error


@pytest.mark.parametrize("d", [7, 0, -1, 8.5])
def test_refuses_d(d):
    with pytest.raises(ValueError, match="d must be an integer of at least 8"):
        lloyd_max(d, 2)


@pytest.mark.parametrize("bits", [0, 9, 2.5])
def test_refuses_bits(bits):
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 8"):
        distortion(64, bits)
