"""The compiled search against brute force over the same codes, at every SIMD level and thread count."""

import numpy as np
import pytest

from tqcore import Quantizer, _core, packing, reference, scan

LEVELS = _core.simd_levels()
CASES = [
    ("chain", 0.5),
    ("chain", 1),
    ("chain", 2),
    ("chain", 2.5),
    ("chain", 4),
    ("chain", 6),
    ("mse", 1),
    ("mse", 2),
    ("mse", 3),
    ("mse", 4),
    ("prod", 1),
    ("prod", 3),
]


@pytest.fixture(params=LEVELS)
def level(request):
    before = _core.simd_level()
    assert _core.set_simd(request.param)
    yield request.param
    _core.set_simd(before)


def stored(quantizer, n, seed=0, duplicates=True):
    """Blocks, scalars [n_scalars, n] and rows of n vectors with a direction in common and some exact copies."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, quantizer.d)) + 0.3).astype(np.float32)
    x *= rng.uniform(0.2, 3.0, (n, 1)).astype(np.float32)
    if duplicates and n > 4:
        x[n // 2 :: 3] = x[0]
    codes, scalars = quantizer.encode(x)
    head = quantizer.core.head_size
    blocks = np.zeros(packing.blocks_for(n, head), np.uint32)
    packing.pack_rows(blocks, 0, codes[:, :head])
    return blocks, np.ascontiguousarray(scalars.T), codes


def quantizer_of(code, bits, metric, d=72, **more):
    return Quantizer(d, bits, code, store_norm=metric == "l2", normalize=metric == "cosine", **more)


def exact(quantizer, codes, scalars, q, metric):
    """Scores float64 [nq, n] by decoding every row: larger is better."""
    y = _core.decode(quantizer.core, codes).astype(np.float64)
    if metric == "cosine":
        norms = np.sqrt((q.astype(np.float64) ** 2).sum(1))
        q = (q / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
    p = quantizer.project(q).astype(np.float64)
    d = quantizer.d
    s = scalars[0].astype(np.float64) * (p[:, :d] @ y[:, :d].T)
    if quantizer.code == "prod":
        s += scalars[1].astype(np.float64) * (p[:, d:] @ y[:, d:].T)
    if metric == "l2":
        s = 2 * s - scalars[-1].astype(np.float64) - (q.astype(np.float64) ** 2).sum(1)[:, None]
    return s


def assert_same_ranking(scores, ids, found, k):
    """Same ids as a stable sort of the scores, where neighbours closer than rounding may swap."""
    for row, got in zip(scores, found, strict=True):
        order = np.lexsort((ids, -row))[:k]
        n = len(order)
        assert (got[n:] == -1).all()
        assert len(set(got[:n].tolist())) == n
        place = {int(i): p for p, i in enumerate(ids)}
        mine = row[[place[int(i)] for i in got[:n]]]
        np.testing.assert_allclose(mine, row[order], rtol=1e-12, atol=1e-9)
        exact_ties = np.flatnonzero(mine[1:] == mine[:-1])
        assert (got[exact_ties] < got[exact_ties + 1]).all()


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(("code", "bits"), CASES)
def test_search_finds_the_exact_top_k(code, bits, metric, level):
    quantizer = quantizer_of(code, bits, metric)
    for n in (1, 15, 16, 33, 700):
        blocks, scalars, codes = stored(quantizer, n)
        q = np.random.default_rng(1).standard_normal((7, quantizer.d)).astype(np.float32) + np.float32(0.2)
        q[3] = 0
        scores = exact(quantizer, codes, scalars, q, metric)
        for k in (1, 10, 40, 64, 65, 200):
            _, found = scan.search(quantizer, blocks, scalars, q, k, metric=metric, n=n)
            assert_same_ranking(scores, np.arange(n), found, k)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("spread", [True, False])
def test_a_guessed_threshold_loses_nothing(spread, metric, level):
    """More rows than a sample is worth taking of; without spread what stands out is fewer than k rows, all sampled."""
    quantizer = quantizer_of("chain", 2, metric, d=16)
    n, k, stripe = 8300, 32, 32 * 16
    rng = np.random.default_rng(7)
    x = rng.standard_normal((n, quantizer.d)).astype(np.float32)
    q = rng.standard_normal((6, quantizer.d)).astype(np.float32)
    if not spread:
        i = np.arange(10)
        x[i * stripe + (i * 0x9E3779B1 % 2**32 >> 16) % 32 * 16] = q[:1] + 0.1 * x[i]
    codes, scalars = quantizer.encode(x)
    scalars = np.ascontiguousarray(scalars.T)
    blocks = np.zeros(packing.blocks_for(n, quantizer.core.head_size), np.uint32)
    packing.pack_rows(blocks, 0, codes)
    scores = exact(quantizer, codes, scalars, q, metric)
    for form in (blocks, codes):
        _, found = scan.search(quantizer, form, scalars, q, k, metric=metric, n=n)
        assert_same_ranking(scores, np.arange(n), found, k)


@pytest.mark.parametrize("size", [1e-22, 1e-20, 1.0, 1e15, 1.5e19])
def test_scores_of_any_size_are_ranked(size, level):
    """Products of numbers so small or so large leave float32's range; what is found is k rows all the same."""
    quantizer = quantizer_of("chain", 2, "ip", d=16)
    n, k = 3000, 100
    blocks, scalars, _ = stored(quantizer, n, duplicates=False)
    q = np.random.default_rng(1).standard_normal((3, quantizer.d)).astype(np.float32)
    _, want = scan.search(quantizer, blocks, scalars, q, k, metric="ip", n=n)
    _, found = scan.search(
        quantizer, blocks, scalars * np.float32(size), q * np.float32(size), k, metric="ip", n=n
    )
    assert all(len(set(row.tolist())) == k for row in found)
    if 1e-20 < size < 1e18:
        assert (np.sort(found) == np.sort(want)).mean() > 0.99


@pytest.mark.parametrize("nq", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("bits", "d"), [(1, 24), (2, 130), (2, 896), (2, 904)])
def test_rows_without_a_scale(bits, d, nq, level):
    """Words of up to one window and past it; scores below 0 throughout, and one far above all others."""
    quantizer = quantizer_of("chain", bits, "cosine", d=d, scale="none")
    n = 4099
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((n, d)) + 1.5).astype(np.float32)
    q = rng.standard_normal((nq, d)).astype(np.float32)
    q[0] = -x[:50].mean(0)
    q[-1] = x[n - 1] if nq > 1 else q[-1]
    codes, scalars = quantizer.encode(x)
    blocks = np.zeros(packing.blocks_for(n, quantizer.core.head_size), np.uint32)
    packing.pack_rows(blocks, 0, codes)
    y = _core.decode(quantizer.core, codes).astype(np.float64)
    unit = (q / np.sqrt((q.astype(np.float64) ** 2).sum(1, keepdims=True))).astype(np.float32)
    scores = quantizer.same_scale * (quantizer.project(unit).astype(np.float64) @ y.T)
    assert scores[0].max() < 0
    mask = np.packbits(np.arange(n) % 5 > 0, bitorder="little")
    for k in (1, 10, 40, 120, 600):
        for form in (blocks, codes):
            rows = scan.Rows(quantizer, form, scalars.T, metric="cosine", n=n)
            assert_same_ranking(scores, np.arange(n), rows.search(q, k)[1], k)
        allowed = np.where(np.arange(n) % 5 > 0, scores, -np.inf)
        assert_same_ranking(allowed, np.arange(n), rows.search(q, k, mask=mask)[1], k)
    lims, _, ids = rows.range_search(q, 0.05)
    for i in range(nq):
        sure = np.abs(scores[i] - 0.05) > 1e-6
        assert set(np.flatnonzero((scores[i] > 0.05) & sure)) == set(ids[lims[i] : lims[i + 1]]) - {
            *np.flatnonzero(~sure)
        }


@pytest.mark.parametrize(("code", "bits"), [("chain", 2), ("mse", 3), ("prod", 2)])
def test_levels_threads_and_layouts_agree_to_the_bit(code, bits):
    quantizer = quantizer_of(code, bits, "l2", d=129)
    n = 3001
    blocks, scalars, codes = stored(quantizer, n)
    q = np.random.default_rng(2).standard_normal((37, quantizer.d)).astype(np.float32)
    before = _core.simd_level()
    results = []
    try:
        for name in LEVELS:
            _core.set_simd(name)
            packing.pack_rows(blocks, 0, codes)
            results += [
                scan.search(quantizer, form, scalars, q, 20, metric="l2", n=n, threads=threads)
                for threads in (1, 2, 3)
                for form in (blocks, codes)
            ]
    finally:
        _core.set_simd(before)
    for distances, ids in results[1:]:
        np.testing.assert_array_equal(ids, results[0][1])
        np.testing.assert_array_equal(distances, results[0][0])


@pytest.mark.parametrize(("code", "bits"), [("chain", 3), ("prod", 2)])
def test_ids_break_ties_and_masks_admit(code, bits, level):
    quantizer = quantizer_of(code, bits, "ip")
    n = 200
    blocks, scalars, codes = stored(quantizer, n)
    rng = np.random.default_rng(3)
    ids = rng.permutation(10 * n)[:n].astype(np.int64)
    q = rng.standard_normal((5, quantizer.d)).astype(np.float32)
    scores = exact(quantizer, codes, scalars, q, "ip")
    for allowed in (rng.random(n) < 0.5, rng.random(n) < 0.02, np.zeros(n, bool)):
        mask = np.packbits(allowed, bitorder="little")
        distances, found = scan.search(
            quantizer, blocks, scalars, q, 30, metric="ip", n=n, ids=ids, mask=mask
        )
        assert_same_ranking(scores[:, allowed], ids[allowed], found, 30)
        assert (distances[found == -1] == -np.finfo(np.float32).max).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(("code", "bits"), [("chain", 1), ("chain", 4), ("layered", 4)])
def test_masks_of_any_density_give_what_the_whole_search_gives(code, bits, metric, level):
    """Rows few and far between are copied and scanned, others where they are: the results must not tell."""
    quantizer = quantizer_of(code, bits, metric)
    n = 3005
    blocks, scalars, codes = stored(quantizer, n)
    rng = np.random.default_rng(5)
    ids = rng.permutation(10 * n)[:n].astype(np.int64)
    q = rng.standard_normal((35, quantizer.d)).astype(np.float32)
    ranged = {"metric": metric, "n": n, "ids": ids}
    ranged["tails"] = np.ascontiguousarray(codes[:, quantizer.core.head_size :])
    options = {**ranged, "deviations": np.inf}
    chosen = [rng.random(n) < share for share in (0.002, 0.01, 0.06, 0.3, 0.9)]
    chosen += [
        np.arange(n) >= n - 3,
        np.arange(n) // 16 % 5 == 0,
        np.arange(n) // 40 % 2 * rng.random(n) > 0.9,
    ]
    chosen += [(np.arange(n) < 1000) | (rng.random(n) < 0.01), np.arange(n) == n - 1]
    for nq in (1, 35):
        all_d, all_i = scan.search(quantizer, blocks, scalars, q[:nq], n, **options)
        _, range_d, range_i = scan.range_search(
            quantizer, blocks, scalars, q[:nq], float(np.median(all_d)), **ranged
        )
        for allowed in chosen:
            mask, admitted = np.packbits(allowed, bitorder="little"), np.isin(all_i, ids[allowed])
            k = int(allowed.sum())
            for form, threads in ((blocks, 1), (blocks, 3), (codes, 2)):
                d, i = scan.search(quantizer, form, scalars, q[:nq], k, mask=mask, threads=threads, **options)
                np.testing.assert_array_equal(i, all_i[admitted].reshape(nq, k))
                np.testing.assert_array_equal(d, all_d[admitted].reshape(nq, k))
                few = scan.search(quantizer, form, scalars, q[:nq], 5, mask=mask, threads=threads, **options)
                np.testing.assert_array_equal(few[1][:, :k], i[:, :5])
            found = scan.range_search(
                quantizer,
                blocks,
                scalars,
                q[:nq],
                float(np.median(all_d)),
                mask=mask,
                **ranged,
            )
            inside = np.isin(range_i, ids[allowed])
            np.testing.assert_array_equal(found[2], range_i[inside])
            np.testing.assert_array_equal(found[1], range_d[inside])


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(("code", "bits"), [("chain", 2), ("mse", 5), ("prod", 3)])
def test_range_search_is_strict_and_complete(code, bits, metric, level):
    quantizer = quantizer_of(code, bits, metric)
    n = 333
    blocks, scalars, _ = stored(quantizer, n)
    q = np.random.default_rng(4).standard_normal((6, quantizer.d)).astype(np.float32)
    all_d, all_i = scan.search(quantizer, blocks, scalars, q, n, metric=metric, n=n)
    for place in (0, 5, n // 2, n - 1):
        radius = float(all_d[2, place])
        limits, distances, found = scan.range_search(
            quantizer, blocks, scalars, q, radius, metric=metric, n=n, threads=2
        )
        for i in range(len(q)):
            inside = all_d[i] < radius if metric == "l2" else all_d[i] > radius
            got = found[limits[i] : limits[i + 1]]
            assert sorted(got) == sorted(all_i[i][inside])
            part = distances[limits[i] : limits[i + 1]]
            np.testing.assert_array_equal(part, all_d[i][inside])


def test_a_stored_vector_is_its_own_unbiased_neighbour():
    quantizer = quantizer_of("chain", 4, "l2", d=128)
    x = np.random.default_rng(5).standard_normal((50, 128)).astype(np.float32)
    codes, scalars = quantizer.encode(x)
    blocks = np.zeros(packing.blocks_for(50, quantizer.code_size), np.uint32)
    packing.pack_rows(blocks, 0, codes)
    distances, ids = scan.search(quantizer, blocks, np.ascontiguousarray(scalars.T), x, 1, metric="l2", n=50)
    np.testing.assert_array_equal(ids[:, 0], np.arange(50))
    # <x, x_hat> = |x|^2 by the scale's definition, so only rounding is left.
    assert distances.max() < 1e-4 * 128


def test_reference_search_agrees():
    quantizer = quantizer_of("chain", 2, "ip", d=40)
    blocks, scalars, codes = stored(quantizer, 90)
    q = np.random.default_rng(6).standard_normal((4, 40)).astype(np.float32)
    scores = exact(quantizer, codes, scalars, q, "ip")
    distances, found = scan.search(quantizer, blocks, scalars, q, 12, metric="ip", n=90)
    want_d, want_i = reference.scan.search(scores, 12, "ip")
    np.testing.assert_array_equal(found, want_i)
    np.testing.assert_allclose(distances, want_d, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("code", "bits"), [("chain", 2), ("mse", 3)])
def test_the_core_rotates_as_the_quantizer_does(code, bits, level):
    for metric in ("l2", "ip", "cosine"):
        quantizer = quantizer_of(code, bits, metric)
        blocks, scalars, _ = stored(quantizer, 90)
        q = np.random.default_rng(5).standard_normal((11, quantizer.d)).astype(np.float32)
        q[4] = 0
        rows = _core.Stored()
        rows.blocks, rows.scale, rows.n = blocks, scalars[0], 90
        rows.squared_norm = scalars[1] if metric == "l2" else None
        for some in (q, q[:1], q[4:5]):
            found = scan.search(quantizer, blocks, scalars, some, 20, metric=metric, n=90)
            expected = _core.search(quantizer.core, rows, *quantizer.query(some, metric), 20)
            if metric == "cosine":  # whose norms NumPy adds up in another order
                np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(found[0], expected[0])
                np.testing.assert_array_equal(found[1], expected[1])


def test_wrong_arguments_are_refused():
    quantizer = quantizer_of("chain", 2, "ip")
    blocks, scalars, _ = stored(quantizer, 20)
    q = np.zeros((1, quantizer.d), np.float32)
    with pytest.raises(ValueError, match="metric"):
        scan.search(quantizer, blocks, scalars, q, 1, metric="dot", n=20)
    with pytest.raises(ValueError, match="store_norm"):
        scan.search(quantizer, blocks, scalars, q, 1, metric="l2", n=20)
    with pytest.raises(ValueError, match="blocks"):
        scan.search(quantizer, blocks, scalars, q, 1, metric="ip", n=10_000)
    rows = _core.Stored()
    rows.blocks, rows.scale, rows.n = blocks, scalars[0], 20
    for rows.signs in (None, np.ones((3, 2, quantizer.d + 1), np.float32)):
        with pytest.raises(ValueError, match="signs"):
            _core.search(quantizer.core, rows, q, None, 1)
