"""Exact scores of given candidates, against brute force, at every SIMD level and thread count."""

import numpy as np
import pytest

from tqcore import Quantizer, _core, packing, reference, scan


@pytest.fixture(params=_core.simd_levels())
def level(request):
    before = _core.simd_level()
    assert _core.set_simd(request.param)
    yield request.param
    _core.set_simd(before)


def encoded(quantizer, n):
    x = np.random.default_rng(3).standard_normal((n, quantizer.d)).astype(np.float32) + np.float32(0.3)
    x[n // 2 :: 3] = x[0]
    codes, scalars = quantizer.encode(x)
    blocks = np.zeros(packing.blocks_for(n, quantizer.code_size), np.uint32)
    packing.pack_rows(blocks, 0, codes)
    return codes, blocks, scalars


def scores(quantizer, codes, scalars, q, metric):
    """float64 [nq, n] by the definition, from decoded rows."""
    decoded = _core.decode(quantizer.core, codes).astype(np.float64)
    unit = quantizer.normalized(q)
    parts = [quantizer.project(unit).astype(np.float64)[:, : quantizer.d] @ decoded[:, : quantizer.d].T]
    if quantizer.code == "prod":
        parts.append(
            quantizer.project(unit).astype(np.float64)[:, quantizer.d :] @ decoded[:, quantizer.d :].T
        )
    return reference.scan.score(unit, parts, scalars, metric)


def candidates_of(nq, n, width):
    rng = np.random.default_rng(4)
    chosen = np.stack([rng.permutation(n)[:width] for _ in range(nq)]).astype(np.int64)
    chosen[1, 5:] = -1
    chosen[2] = -1
    return chosen


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(
    ("code", "bits"), [("chain", 1), ("chain", 2.5), ("chain", 8), ("mse", 3), ("prod", 3)]
)
def test_matches_the_reference(level, metric, code, bits):
    quantizer = Quantizer(72, bits, code, store_norm=metric == "l2", normalize=metric == "cosine")
    codes, blocks, scalars = encoded(quantizer, 101)
    q = np.random.default_rng(5).standard_normal((35, 72)).astype(np.float32)
    ids = np.random.default_rng(6).permutation(1000)[:101]
    chosen = candidates_of(35, 101, 40)
    truth = reference.scan.rescore(scores(quantizer, codes, scalars, q, metric), chosen, 12, metric, ids)
    for rows in (codes, blocks):
        for threads in (1, 3):
            found = scan.rescore(
                quantizer,
                rows,
                np.ascontiguousarray(scalars.T),
                q,
                chosen,
                12,
                metric=metric,
                n=101,
                ids=ids,
                threads=threads,
            )
            np.testing.assert_array_equal(found[1], truth[1])
            np.testing.assert_allclose(found[0], truth[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_all_rows_as_candidates_give_the_search(metric):
    quantizer = Quantizer(64, 4, store_norm=metric == "l2")
    _, blocks, scalars = encoded(quantizer, 90)
    q = np.random.default_rng(5).standard_normal((20, 64)).astype(np.float32)
    columns = np.ascontiguousarray(scalars.T)
    everything = np.tile(np.arange(90), (20, 1))
    found = scan.rescore(quantizer, blocks, columns, q, everything, 100, metric=metric, n=90)
    for mine, theirs in zip(
        found, scan.search(quantizer, blocks, columns, q, 100, metric=metric, n=90), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_search_names_rows_on_request():
    quantizer = Quantizer(64, 4)
    codes, _, scalars = encoded(quantizer, 60)
    q = np.random.default_rng(5).standard_normal((7, 64)).astype(np.float32)
    ids = np.random.default_rng(6).permutation(1000)[:60]
    options = {"metric": "ip", "n": 60, "ids": ids}
    columns = np.ascontiguousarray(scalars.T)
    named = scan.search(quantizer, codes, columns, q, 70, **options)
    rows = scan.search(quantizer, codes, columns, q, 70, positions=True, **options)
    np.testing.assert_array_equal(named[0], rows[0])
    np.testing.assert_array_equal(named[1][:, :60], ids[rows[1][:, :60]])
    assert (rows[1][:, 60:] == -1).all()


@pytest.mark.parametrize("wrong", [-2, 60, 2**40])
def test_candidates_must_be_rows(wrong):
    quantizer = Quantizer(64, 4)
    codes, _, scalars = encoded(quantizer, 60)
    q = np.ones((1, 64), np.float32)
    with pytest.raises(ValueError, match="candidates: must be from -1 to n - 1"):
        scan.rescore(
            quantizer, codes, np.ascontiguousarray(scalars.T), q, np.array([[0, wrong]]), 3, metric="ip", n=60
        )
    with pytest.raises(ValueError, match="candidates: one row a query"):
        scan.rescore(
            quantizer,
            codes,
            np.ascontiguousarray(scalars.T),
            q,
            np.zeros((2, 3), np.int64),
            3,
            metric="ip",
            n=60,
        )


def test_no_queries_and_no_candidates():
    quantizer = Quantizer(64, 4)
    codes, _, scalars = encoded(quantizer, 60)
    for nq, width in ((0, 5), (3, 0)):
        distances, labels = scan.rescore(
            quantizer,
            codes,
            np.ascontiguousarray(scalars.T),
            np.ones((nq, 64), np.float32),
            np.zeros((nq, width), np.int64),
            4,
            metric="ip",
            n=60,
        )
        assert distances.shape == labels.shape == (nq, 4)
        assert (labels == -1).all()
