import math

import numpy as np
import pytest
from scipy import linalg

import paper
from tqcore.codebook import distortion, lloyd_max
from tqcore.reference import Quantizer, chain, mse, packing, prod, rotation, scan

DIMS = [8, 9, 100, 127, 128, 200, 384]
RATES = {
    0.5: (1, 8),
    1: (1, 4),
    1.5: (3, 8),
    2: (1, 2),
    2.5: (5, 8),
    3: (3, 4),
    3.5: (7, 8),
    4: (1, 1),
    5: (5, 4),
    6: (3, 2),
    8: (2, 1),
}


def unit_rows(n, d, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def sphere_rows(n, d, seed=0):
    return (np.sqrt(d) * unit_rows(n, d, seed)).astype(np.float32)


def random_table(q, memory, seed=0):
    return (np.random.default_rng(seed).standard_normal((q, memory, 16)) / math.sqrt(memory)).astype(
        np.float32
    )


@pytest.mark.parametrize("d", DIMS)
def test_norm_and_normalize(d):
    x = sphere_rows(5, d) * np.float32(3.7)
    x[2] = 0
    norms = rotation.norm(x)
    np.testing.assert_allclose(norms, np.linalg.norm(x.astype(np.float64), axis=1), rtol=1e-15)
    lengths = np.linalg.norm(rotation.normalize(x, norms).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, np.sqrt(d) * np.array([1, 1, 0, 1, 1]), rtol=1e-7)


def test_dot_keeps_eight_sums():
    x = np.zeros((1, 17), dtype=np.float32)
    x[0, [0, 1, 8, 16]] = 2.0**60, 1, 1, -(2.0**60)
    # 2**60 swallows the 1 of its own lane, number 8, and leaves that of the next lane alone.
    assert rotation.dot(x, np.ones_like(x))[0] == 1


def dense_hadamard(d, seed):
    p = 2 ** int(math.log2(d))
    signs = rotation.hadamard_signs(d, seed)
    first, last, mix = np.eye(d), np.eye(d), np.eye(d)
    first[:p, :p] = last[d - p :, d - p :] = linalg.hadamard(p) / math.sqrt(p)
    h = d // 2
    mix[: 2 * h, : 2 * h] = np.kron(linalg.hadamard(2) / math.sqrt(2), np.eye(h))
    total = np.eye(d)
    for r in range(3):
        total = first @ np.diag(signs[r, 0]) @ total
        if d > p:
            total = last @ np.diag(signs[r, 1]) @ total
            if r < 2:
                total = mix @ total
    return total


@pytest.mark.parametrize("d", DIMS)
def test_hadamard_rotation(d):
    signs = rotation.hadamard_signs(d, seed=5)
    y = rotation.hadamard_rotate(np.eye(d, dtype=np.float32), signs)
    np.testing.assert_allclose(y.T, dense_hadamard(d, 5), atol=3e-6)
    np.testing.assert_allclose(y @ y.T, np.eye(d), atol=3e-6)
    x = sphere_rows(4, d)
    back = rotation.hadamard_rotate(rotation.hadamard_rotate(x, signs), signs, inverse=True)
    np.testing.assert_allclose(back, x, atol=3e-6)


def test_hadamard_signs():
    signs = rotation.hadamard_signs(100, seed=1)
    assert signs.shape == (3, 2, 100)
    assert set(np.unique(signs)) == {-1, 1}
    assert not np.array_equal(signs, rotation.hadamard_signs(100, seed=2))
    assert not np.array_equal(signs, rotation.hadamard_signs(100, seed=1, stream=3))
    raw = int(np.random.Philox(key=np.array([1, 0], dtype=np.uint64)).random_raw())
    np.testing.assert_array_equal(signs.reshape(-1)[:64], [1 - 2 * (raw >> i & 1) for i in range(64)])


@pytest.mark.parametrize("d", [64, 100, 128, 200, 384, 768])
def test_hadamard_rotation_of_one_hot_rows(d):
    # Spiky rows are the hard case for a structured rotation: 0.26 after a single round at 2 bits.
    y = math.sqrt(d) * rotation.hadamard_rotate(np.eye(d, dtype=np.float32), rotation.hadamard_signs(d, 0))
    c = lloyd_max(d, 2)
    error = np.mean((y - mse.mse_decode(mse.mse_encode(y.astype(np.float32), c), c)) ** 2)
    assert error < 1.05 * distortion(d, 2)


@pytest.mark.parametrize("d", [8, 9, 100])
def test_haar_matrix(d):
    m = rotation.haar_matrix(d, seed=3)
    np.testing.assert_allclose(m @ m.T, np.eye(d), atol=1e-13)
    q, r = np.linalg.qr(rotation.gaussian_matrix(d, 3, 1))
    np.testing.assert_allclose(m, q * np.sign(np.diag(r)), atol=1e-10)


def test_gaussian_matrix():
    g = rotation.gaussian_matrix(301, seed=1, stream=2).reshape(-1)
    n = g.size
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(np.mean(g**power) - moment) < 4 * math.sqrt(spread / n)
    assert abs(np.corrcoef(g[0:-1:2], g[1::2])[0, 1]) < 4 / math.sqrt(n / 2)


@pytest.mark.parametrize("bits", range(1, 9))
def test_mse_is_algorithm_1(bits):
    d = 100
    x = unit_rows(20, d)
    q = Quantizer(d, bits, "mse", centroids=lloyd_max(d, bits), rotation="haar", seed=7, scale="norm")
    codes, scalars = q.encode(x.astype(np.float32))
    theirs = paper.TurboQuantMSE(d, bits, None, rotation.haar_matrix(d, 7), lloyd_max(d, bits) / math.sqrt(d))
    index = packing.unpack_bits(codes, d, bits)
    assert np.mean(index != theirs.quant(x)) < 1e-3  # float32 rounding moves values across a boundary
    np.testing.assert_allclose(q.decode(codes, scalars), theirs.dequant(index), atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_prod_is_algorithm_2(bits):
    d, seed = 100, 7
    x = unit_rows(20, d)
    q = Quantizer(
        d, bits, "prod", centroids=lloyd_max(d, bits - 1), rotation="haar", seed=seed, sketch="gaussian"
    )
    codes, scalars = q.encode(x.astype(np.float32))
    m = rotation.haar_matrix(d, seed)
    # The paper sketches the error before rotation: S R in place of S.
    sketch = prod.sketch_matrix(d, "gaussian", seed) @ m
    theirs = paper.TurboQuantProd(d, bits, None, m, lloyd_max(d, bits - 1) / math.sqrt(d), sketch)
    index, z, gamma = theirs.quant(x)
    our_index = packing.unpack_bits(codes[:, : -(-d * (bits - 1) // 8)], d, bits - 1)
    same = np.all(our_index == index, axis=1)
    assert same.mean() > 0.7
    np.testing.assert_allclose(
        q.decode(codes, scalars)[same], theirs.dequant(index, z, gamma)[same], atol=2e-6
    )


def test_zero_rows_score_zero():
    d = 100
    x = np.zeros((3, d), dtype=np.float32)
    for code, options in [
        ("mse", {"centroids": lloyd_max(d, 2)}),
        ("prod", {"centroids": lloyd_max(d, 1)}),
        ("chain", {"table": random_table(2, 2), "rate": (1, 2)}),
    ]:
        q = Quantizer(d, 2, code, store_norm=True, **options)
        codes, scalars = q.encode(x)
        assert not scalars.any()
        assert not q.score(sphere_rows(2, d), codes, scalars, "ip").any()


def test_nibble_count():
    table = {
        8: [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16],
        100: [13, 25, 38, 50, 62, 75, 87, 100, 125, 150, 200],
        128: [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256],
        127: [16, 32, 48, 64, 79, 95, 111, 127, 159, 191, 254],
    }
    for d, counts in table.items():
        assert [chain.nibble_count(d, *rate) for rate in RATES.values()] == counts
        for (p, q), count in zip(RATES.values(), counts, strict=True):
            assert chain.closing_nibbles(d, p, q)[-1] < count


@pytest.mark.parametrize("memory", [2, 3])
@pytest.mark.parametrize(("p", "q", "d"), [(1, 8, 24), (3, 8, 8), (1, 2, 6), (1, 1, 3), (5, 4, 2), (2, 1, 2)])
def test_chain_against_every_string(p, q, d, memory):
    table = random_table(q, memory, seed=d)
    y = np.random.default_rng(d).standard_normal((40, d)).astype(np.float32)
    count = chain.nibble_count(d, p, q)
    strings = np.stack(np.unravel_index(np.arange(16**count), (16,) * count), axis=1)
    candidates = chain.chain_decode(strings, table, d, p, q).astype(np.float64)
    cost = np.sum(candidates**2, axis=1) - 2 * y.astype(np.float64) @ candidates.T
    nibbles = chain.chain_encode(y, table, p, q)
    chosen = np.ravel_multi_index(tuple(nibbles.T), (16,) * count)
    chosen_cost = np.take_along_axis(cost, chosen[:, None], axis=1)[:, 0]
    seam = np.arange(count)[-(memory - 1) :]
    best = [
        row[np.all(strings[:, seam] == n[seam], axis=1)].min() for row, n in zip(cost, nibbles, strict=True)
    ]
    # Costs are integers of 2**-16 (2**-18 with a dimension per nibble), each term rounded once.
    rounding = (memory + 1) * count * 2.0 ** -(16 if p < q else 18)
    np.testing.assert_allclose(chosen_cost, best, atol=rounding)
    assert np.mean(chosen_cost - cost.min(axis=1)) < 0.2 * d  # the seam is a good one, not always the best


@pytest.mark.parametrize("memory", [2, 3])
@pytest.mark.parametrize(("p", "q"), RATES.values())
def test_chain_cannot_be_improved_by_one_nibble(p, q, memory):
    d = 67
    table = random_table(q, memory)
    y = sphere_rows(2, d)
    nibbles = chain.chain_encode(y, table, p, q)
    count = nibbles.shape[1]
    error = np.sum((chain.chain_decode(nibbles, table, d, p, q).astype(np.float64) - y) ** 2, axis=1)
    for j in range(count - memory + 1):  # the last ones are fixed by the first pass
        for value in range(16):
            changed = nibbles.copy()
            changed[:, j] = value
            moved = np.sum((chain.chain_decode(changed, table, d, p, q).astype(np.float64) - y) ** 2, axis=1)
            assert np.all(moved > error - 1e-3)


@pytest.mark.parametrize("memory", [2, 3])
@pytest.mark.parametrize(("p", "q"), RATES.values())
def test_chain_terms_sum_to_the_error(p, q, memory):
    d = 37
    table = random_table(q, memory)
    y = sphere_rows(3, d)
    linear, square = chain.chain_terms(y, table, p, q)
    count = len(square)
    nibbles = np.random.default_rng(1).integers(0, 16, (3, count))
    total = np.zeros(3)
    for j in range(count):
        at = [nibbles[:, (j - o) % count] for o in range(memory)]
        total += square[j][tuple(at)]
        for o in range(memory):
            total += linear[o][np.arange(3), j, at[o]]
    scale = 16 * 2.0 ** (16 if p < q else 18)
    decoded = chain.chain_decode(nibbles, table, d, p, q).astype(np.float64)
    expected = np.sum(decoded**2 - 2 * y.astype(np.float64) * decoded, axis=1)
    np.testing.assert_allclose(total / scale, expected, atol=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_mse_is_a_chain_without_memory(bits):
    d = 45
    c = lloyd_max(d, bits)
    y = sphere_rows(5, d)
    index = mse.mse_encode(y, c)
    np.testing.assert_array_equal(index, np.abs(y[:, :, None] - c).argmin(axis=2))
    codes = packing.pack_bits(index, bits)
    lut = mse.mse_lut(y, c)
    nibbles = packing.unpack_nibbles(codes, lut.shape[1])
    scores = lut[:, np.arange(lut.shape[1])[None], nibbles].sum(axis=2)
    # Positions past d add nothing, whatever the padding says.
    np.testing.assert_allclose(
        scores, y @ mse.mse_decode(index, c).T.astype(np.float64), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("memory", [2, 3])
@pytest.mark.parametrize(("p", "q"), RATES.values())
def test_chain_lut_scores(p, q, memory):
    d = 45
    table = random_table(q, memory)
    y = sphere_rows(3, d)
    nibbles = np.random.default_rng(2).integers(0, 16, (4, chain.nibble_count(d, p, q)))
    lut = chain.chain_lut(y, table, d, p, q)
    scores = lut[:, np.arange(nibbles.shape[1])[None], nibbles].sum(axis=2)
    decoded = chain.chain_decode(nibbles, table, d, p, q).astype(np.float64)
    np.testing.assert_allclose(scores, y.astype(np.float64) @ decoded.T, atol=1e-4)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("d", [8, 9, 31])
def test_pack_bits(d, bits):
    values = np.random.default_rng(d).integers(0, 2**bits, (3, d))
    codes = packing.pack_bits(values, bits)
    assert codes.shape == (3, math.ceil(d * bits / 8))
    np.testing.assert_array_equal(packing.unpack_bits(codes, d, bits), values)
    for row, code in zip(values, codes, strict=True):
        stream = sum(int(v) << (i * bits) for i, v in enumerate(row))
        assert int.from_bytes(code.tobytes(), "little") == stream


def test_pack_nibbles():
    codes = packing.pack_nibbles(np.array([[1, 2, 15]]))
    np.testing.assert_array_equal(codes, [[0x21, 0x0F]])
    np.testing.assert_array_equal(packing.unpack_nibbles(codes, 3), [[1, 2, 15]])


def test_pack_rows():
    blocks = np.zeros(packing.blocks_for(20, 6), dtype=np.uint32)
    assert blocks.shape == (2, 2, 16)
    codes = np.arange(18, dtype=np.uint8).reshape(3, 6) + 1
    packing.pack_rows(blocks, 15, codes)
    assert blocks[0, 0, 15] == 0x04030201
    assert blocks[1, 1, 0] == 0x0C0B
    np.testing.assert_array_equal(packing.unpack_rows(blocks, slice(15, 18), 6), codes)
    np.testing.assert_array_equal(packing.unpack_rows(blocks, np.array([17, 14]), 6), [codes[2], [0] * 6])


def test_search_order_and_padding():
    scores = np.array([[3.0, 1.0, 3.0, 2.0, -1e-9], [0.0, 0.0, 0.0, 0.0, 0.0]])
    ids = np.array([50, 10, 20, 30, 40])
    worst = np.finfo(np.float32).max
    D, labels = scan.search(scores, 6, "ip", ids)
    np.testing.assert_array_equal(labels, [[20, 50, 30, 10, 40, -1], [10, 20, 30, 40, 50, -1]])
    np.testing.assert_array_equal(D[0, [0, 5]], [3, -worst])
    D, labels = scan.search(scores, 3, "l2", ids, mask=np.array([1, 0, 1, 1, 1]))
    np.testing.assert_array_equal(labels, [[40, 30, 20], [20, 30, 40]])
    assert D[0, 0] == 0
    D, labels = scan.search(scores[:, :0], 2, "l2")
    np.testing.assert_array_equal(labels, np.full((2, 2), -1))
    np.testing.assert_array_equal(D, np.full((2, 2), worst))


def test_range_search_is_strict():
    scores = np.array([[3.0, 1.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    lims, D, labels = scan.range_search(scores, 2.0, "l2")
    np.testing.assert_array_equal(lims, [0, 1, 1])
    np.testing.assert_array_equal(D, [1])
    np.testing.assert_array_equal(labels, [1])
    lims, _, labels = scan.range_search(scores, 2.0, "ip", ids=np.array([9, 8, 7, 6]))
    np.testing.assert_array_equal(lims, [0, 2, 6])
    np.testing.assert_array_equal(labels, [7, 9, 6, 7, 8, 9])


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_scores_are_those_of_the_decoded_rows(metric):
    d = 37
    x, y = 2.5 * sphere_rows(6, d), sphere_rows(3, d, 1)
    q = Quantizer(
        d, 8, "mse", centroids=lloyd_max(d, 8), store_norm=metric == "l2", normalize=metric == "cosine"
    )
    codes, scalars = q.encode(x)
    decoded = q.decode(codes, scalars).astype(np.float64)
    inner = y.astype(np.float64) @ decoded.T
    expected = {
        "ip": inner,
        "cosine": inner / np.linalg.norm(y, axis=1, keepdims=True),
        "l2": np.sum(y**2, axis=1)[:, None] + np.sum(x**2, axis=1) - 2 * inner,
    }[metric]
    np.testing.assert_allclose(q.score(y, codes, scalars, metric), expected, atol=2e-4)
    if metric == "cosine":
        cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ y.T / np.linalg.norm(y, axis=1)
        np.testing.assert_allclose(q.score(y, codes, scalars, metric), cosines.T, atol=0.01)
        assert not q.score(np.zeros_like(y), codes, scalars, metric).any()
