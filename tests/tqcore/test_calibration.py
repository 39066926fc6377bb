"""Calibrated plans: what they promise, what they keep, and that they do no harm where they cannot help."""

import numpy as np
import pytest

from tqcore import Quantizer, _core, packing, scan
from tqcore.calibration import calibrate
from tqcore.chain import chain_mse
from tqcore.config import ChainLayout
from tqcore.plan import Plan

D = 96


def anisotropic(n, seed=0, d=D, shift=1.0):
    """Gaussian rows with a geometric spectrum in a random basis, and a mean."""
    rng = np.random.default_rng(7)
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    mean = shift * rng.standard_normal(d) / np.sqrt(d)
    x = np.random.default_rng(seed).standard_normal((n, d)) * 0.96 ** np.arange(d)
    return (x @ basis.T / 4 + mean).astype(np.float32)


def recall(quantizer, base, queries, metric="ip", k=10):
    codes, scalars = quantizer.encode(base)
    blocks = np.zeros(packing.blocks_for(len(base), quantizer.code_size), np.uint32)
    packing.pack_rows(blocks, 0, codes)
    _, found = scan.search(
        quantizer, blocks, np.ascontiguousarray(scalars.T), queries, k, metric=metric, n=len(base)
    )
    exact = queries.astype(np.float64) @ base.T.astype(np.float64)
    if metric == "l2":
        exact = 2 * exact - (base.astype(np.float64) ** 2).sum(1)
    best = np.argsort(-exact, axis=1)[:, :k]
    return np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), best.tolist(), strict=True)]) / k


@pytest.mark.parametrize("bits", [0.5, 1, 2, 2.5, 4, 6])
@pytest.mark.parametrize("d", [8, 33, 96, 200])
def test_plans_take_no_more_bytes_than_the_uniform_code(d, bits):
    plan = calibrate(anisotropic(500, d=d), bits)
    assert plan.code_size <= ChainLayout(d, bits).code_size
    assert sum(s.dims for s in plan.segments) <= d
    rates = [s.bits for s in plan.segments]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_anisotropic_data_gains(bits, metric):
    base, queries = anisotropic(4000), anisotropic(100, seed=1)
    options = {"store_norm": metric == "l2"}
    plan = calibrate(base, bits, centre_queries=metric == "l2")
    oblivious = recall(Quantizer(D, bits, **options), base, queries, metric)
    planned = recall(Quantizer(D, bits, plan=plan, **options), base, queries, metric)
    assert planned > oblivious + 0.05 / bits


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("decay", [0.3, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("asked", ["like the data", "alike from all sides", "of the weak directions"])
def test_no_spectrum_loses_to_the_oblivious_code(bits, decay, asked):
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    deviations = np.arange(1.0, D + 1) ** -decay
    base = (rng.standard_normal((3000, D)) * deviations @ basis).astype(np.float32)
    spread = {
        "like the data": deviations,
        "alike from all sides": 1.0,
        "of the weak directions": 1 / deviations,
    }
    queries = (rng.standard_normal((150, D)) * spread[asked] @ basis).astype(np.float32)
    planned = recall(Quantizer(D, bits, plan=calibrate(base, bits)), base, queries)
    assert planned > recall(Quantizer(D, bits), base, queries) - 0.005


def test_isotropic_data_keep_the_oblivious_rotation():
    x = np.random.default_rng(0).standard_normal((4000, D)).astype(np.float32)
    plan = calibrate(x, 2)
    assert plan.centres_only
    assert plan.code_size == ChainLayout(D, 2).code_size


def test_queries_move_bits_to_what_they_ask():
    x = np.random.default_rng(0).standard_normal((4000, D)).astype(np.float32)
    queries = np.zeros((200, D), np.float32)
    queries[:, :32] = np.random.default_rng(1).standard_normal((200, 32))
    plan = calibrate(x, 1, queries=queries)
    assert not plan.centres_only
    assert recall(Quantizer(D, 1, plan=plan), x, queries) > recall(Quantizer(D, 1), x, queries) + 0.2


@pytest.mark.parametrize("queries", [None, anisotropic(50, seed=3)])
def test_scores_are_those_of_the_decoded_vectors(queries):
    base = anisotropic(300)
    quantizer = Quantizer(D, 2, plan=calibrate(base, 2, queries=queries))
    codes, scalars = quantizer.encode(base)
    decoded = quantizer.decode(codes, scalars)
    q = anisotropic(5, seed=9)
    distances, ids = scan.search(
        quantizer, codes, np.ascontiguousarray(scalars.T), q, 300, metric="ip", n=300
    )
    want = np.take_along_axis(q.astype(np.float64) @ decoded.T.astype(np.float64), ids, axis=1)
    np.testing.assert_allclose(distances, want, atol=1e-4)


def test_inner_products_are_unbiased():
    base, q = anisotropic(20_000), anisotropic(40, seed=5)
    plan = calibrate(base, 4)
    quantizer = Quantizer(D, 4, plan=plan)
    codes, scalars = quantizer.encode(base)
    error = (quantizer.decode(codes, scalars) - base).astype(np.float64) @ q.T.astype(np.float64)
    spread = error.std(axis=0) / np.sqrt(len(base))
    # Bits of zero rate leave nothing out at 4 bits here, so what remains is the codes' own bias.
    assert np.median(np.abs(error.mean(axis=0)) / spread) < 3


def test_expected_error_is_the_measured_one():
    base = anisotropic(4000)
    plan = calibrate(base, 2)
    quantizer = Quantizer(D, 2, plan=plan)
    decoded = quantizer.decode(*quantizer.encode(base))
    measured = float(np.mean(np.sum((decoded - base).astype(np.float64) ** 2, axis=1)))
    expected = plan.expected_error(base - plan.mean)
    # The unbiased scale lengthens what is decoded, so the measured error is somewhat larger.
    assert 0.9 * expected < measured < 1.5 * expected
    centred = base - base.mean(0)
    assert expected < chain_mse(2, 2) * float(np.mean(np.sum(centred.astype(np.float64) ** 2, axis=1)))


@pytest.mark.parametrize(
    "sample",
    [
        np.ones((2, D), np.float32),
        np.zeros((50, D), np.float32),
        anisotropic(3),
        np.repeat(anisotropic(1), 40, axis=0),
        anisotropic(400) * np.float32(1e-18),
        anisotropic(400) * np.float32(1e15),
        np.hstack([anisotropic(400, d=8), np.zeros((400, D - 8), np.float32)]),
    ],
    ids=["constant", "zero", "three rows", "one row repeated", "tiny", "huge", "rank 8"],
)
def test_degenerate_samples_give_usable_plans(sample):
    plan = calibrate(sample, 2)
    quantizer = Quantizer(D, 2, plan=plan)
    rows = np.vstack([sample[:5], anisotropic(5) * np.abs(sample).max()])
    decoded = quantizer.decode(*quantizer.encode(rows))
    assert np.isfinite(decoded).all()
    assert plan.centres_only or (np.isfinite(plan.deviations).all() and (plan.deviations > 0).all())


def test_levels_and_threads_agree_to_the_bit():
    base = anisotropic(700)
    quantizer = Quantizer(D, 2, plan=calibrate(base, 2), store_norm=True)
    before, seen = _core.simd_level(), []
    try:
        for level in _core.simd_levels():
            _core.set_simd(level)
            for threads in (1, 3):
                codes, scalars = quantizer.encode(base, threads=threads)
                seen.append((codes, scalars, quantizer.project(base[:5], threads)))
    finally:
        _core.set_simd(before)
    for other in seen[1:]:
        for one, two in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_project_is_a_matrix_product():
    rng = np.random.default_rng(0)
    for n, d, columns in [(0, 8, 8), (1, 9, 5), (7, 33, 70), (100, 64, 129)]:
        x = rng.standard_normal((n, d)).astype(np.float32)
        m = rng.standard_normal((d, columns)).astype(np.float32)
        want = x.astype(np.float64) @ m.astype(np.float64)
        got = _core.project(x, m)
        assert got.shape == (n, columns)
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_description_round_trip():
    for queries in (None, anisotropic(60, seed=2)):
        plan = calibrate(anisotropic(300), 1, queries=queries)
        again = Plan.from_description(plan.describe(), plan.seed, plan.memory, plan.arrays())
        x = anisotropic(20, seed=4)
        for one, two in zip(
            Quantizer(D, 1, plan=plan).encode(x), Quantizer(D, 1, plan=again).encode(x), strict=True
        ):
            np.testing.assert_array_equal(one, two)
        shapes = {name: array.shape for name, array in plan.arrays().items()}
        assert Plan.shapes(D, plan.describe()) == shapes


def test_plans_belong_to_their_quantizer():
    plan = calibrate(anisotropic(300), 2)
    for options, match in [
        ({"code": "mse"}, "chain"),
        ({"rotation": "haar"}, "hadamard"),
        ({"seed": 1}, "seed"),
        ({"memory": 3}, "memory"),
    ]:
        with pytest.raises(ValueError, match=match):
            Quantizer(D, 2, plan=plan, **options)
    with pytest.raises(ValueError, match="d = 100"):
        Quantizer(100, 2, plan=plan)
