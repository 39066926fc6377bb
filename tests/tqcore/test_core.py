import math
from functools import lru_cache

import numpy as np
import pytest

from tqcore import Quantizer, _core, packing, scan
from tqcore.chain import chain_tables
from tqcore.codebook import lloyd_max
from tqcore.config import CHAIN_RATES
from tqcore.reference import Quantizer as Reference
from tqcore.reference import chain as reference_chain
from tqcore.reference import packing as reference_packing
from tqcore.reference import rotation as reference_rotation
from tqcore.reference import scan as reference_scan
from tqcore.rotation import HaarRotation, HadamardRotation

DIMS = [8, 9, 100, 127, 128, 200, 384]
COUNTS = [0, 1, 31, 32, 33]
METRICS = {"ip": {}, "l2": {"store_norm": True}, "cosine": {"normalize": True}}
CODES = [("chain", b) for b in CHAIN_RATES] + [("mse", b) for b in range(1, 9)]
ONE_OF_EACH = [("chain", 0.5), ("chain", 2.5), ("chain", 8), ("mse", 1), ("mse", 3), ("mse", 4)]


def reference_of(q):
    """The NumPy quantizer with the tables of a compiled one."""
    config = {name: value for name, value in q.config().items() if name not in ("tables", "plan")}
    code, bits, memory = config["code"], config["bits"], config.pop("memory")
    if code == "chain":
        return Reference(**config, table=chain_tables(bits, memory), rate=CHAIN_RATES[bits])
    bits = int(bits) - (code == "prod")
    return Reference(**config, centroids=lloyd_max(config["d"], bits) if bits else None)


@lru_cache(maxsize=4)
def hard_rows(d, n=33):
    """Rows of many lengths: ordinary, zero, denormal, huge, one-hot, constant, and one far coordinate."""
    x = np.random.default_rng(d).standard_normal((n, d)).astype(np.float32)
    if n >= 33:
        x[3] = 0
        x[4] *= np.float32(1e-41)
        x[5] *= np.float32(1e17)
        x[6] *= np.float32(1e-30)
        x[7:9] = np.eye(d, dtype=np.float32)[[0, d - 1]]
        x[9] = 1
        x[10] = -0.0
        x[11] = x[12]
        x[13, 1] = 1e6
        x[32, 0] = np.float32(1e-45)
    x.setflags(write=False)
    return x


def assert_encodes_like_the_reference(q, x):
    codes, scalars = q.encode(x)
    expected, expected_scalars = reference_of(q).encode(x)
    assert codes.dtype == np.uint8
    assert scalars.dtype == np.float32
    assert codes.shape == (len(x), q.code_size)
    assert scalars.shape == (len(x), q.n_scalars)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(scalars, expected_scalars)


@pytest.mark.parametrize("d", [*DIMS, 1000, 1536])
def test_hadamard_rotation(d):
    x = hard_rows(d)
    r = HadamardRotation(d, seed=11, stream=3)
    signs = reference_rotation.hadamard_signs(d, 11, 3)
    np.testing.assert_array_equal(r.signs, signs)
    for n in COUNTS:
        y = r.rotate(x[:n])
        np.testing.assert_array_equal(y, reference_rotation.hadamard_rotate(x[:n], signs))
        np.testing.assert_array_equal(
            r.unrotate(y), reference_rotation.hadamard_rotate(y, signs, inverse=True)
        )


@pytest.mark.parametrize("d", [8, 9, 100])
def test_haar_rotation(d):
    r = HaarRotation(d, seed=4)
    expected = reference_rotation.haar_matrix(d, 4)
    np.testing.assert_allclose(r.matrix, expected, atol=1e-7)
    x = np.random.default_rng(0).standard_normal((5, d)).astype(np.float32)
    np.testing.assert_allclose(r.rotate(x), x @ expected.T, atol=1e-5)
    np.testing.assert_allclose(r.unrotate(r.rotate(x)), x, atol=1e-5)


@pytest.mark.parametrize("d", DIMS)
def test_normalize(d):
    x = hard_rows(d)
    y, norms = _core.normalize(x)
    np.testing.assert_array_equal(norms, reference_rotation.norm(x))
    np.testing.assert_array_equal(y, reference_rotation.normalize(x, norms))


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize(("code", "bits"), CODES)
def test_codes_are_those_of_the_reference(code, bits, d):
    assert_encodes_like_the_reference(Quantizer(d, bits, code, seed=d, store_norm=True), hard_rows(d))


@pytest.mark.parametrize(("d", "n"), [(9, 33), (100, 17), (384, 2)])
@pytest.mark.parametrize("bits", CHAIN_RATES)
def test_codes_of_memory_three(bits, d, n):
    assert_encodes_like_the_reference(Quantizer(d, bits, memory=3, seed=1), hard_rows(d)[:n])


@pytest.mark.parametrize("d", [8, 9, 100, 128])
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_the_orthogonal_sketch(bits, d):
    assert_encodes_like_the_reference(Quantizer(d, bits, "prod", seed=2, store_norm=True), hard_rows(d))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_codes_of_the_gaussian_sketch(bits):
    d = 100
    q = Quantizer(d, bits, "prod", seed=2, sketch="gaussian")
    x = hard_rows(d)
    codes, scalars = q.encode(x)
    expected, expected_scalars = reference_of(q).encode(x)
    np.testing.assert_array_equal(scalars, expected_scalars)
    split = math.ceil(d * (bits - 1) / 8)
    np.testing.assert_array_equal(codes[:, :split], expected[:, :split])
    # The product with S is BLAS's: a sign may differ where it is within rounding of 0.
    assert np.unpackbits(codes[:, split:] ^ expected[:, split:]).sum() <= 1


@pytest.mark.parametrize("options", [{"scale": "norm"}, {"normalize": True}, {"store_norm": True}, {}])
@pytest.mark.parametrize(("code", "bits"), [("chain", 3), ("mse", 2), ("mse", 5), ("prod", 3)])
def test_scalars(code, bits, options):
    assert_encodes_like_the_reference(Quantizer(100, bits, code, **options), hard_rows(100))


@pytest.mark.parametrize(("code", "bits"), [*ONE_OF_EACH, ("prod", 1), ("prod", 3)])
def test_rows_do_not_depend_on_each_other(code, bits):
    d = 100
    q = Quantizer(d, bits, code)
    x = np.random.default_rng(0).standard_normal((300, d)).astype(np.float32)
    codes, scalars = q.encode(x, threads=1)
    for n in COUNTS:
        for part in (x[:n], np.asfortranarray(x[:n])):
            some, some_scalars = q.encode(part)
            np.testing.assert_array_equal(some, codes[:n])
            np.testing.assert_array_equal(some_scalars, scalars[:n])
    again, again_scalars = q.encode(x, threads=3)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(again_scalars, scalars)


@pytest.mark.parametrize("level", _core.simd_levels())
def test_simd_levels_agree(level):
    active = _core.simd_level()
    x = hard_rows(127)
    assert _core.set_simd(level)
    try:
        for code, bits in [*ONE_OF_EACH, ("prod", 3)]:
            q = Quantizer(127, bits, code, store_norm=True)
            assert_encodes_like_the_reference(q, x)
            assert_searches_like_the_reference(q, 127, "l2")
        assert_encodes_like_the_reference(Quantizer(127, 2, memory=3), x)
    finally:
        _core.set_simd(active)


@pytest.mark.parametrize("d", [8, 9, 127, 200])
@pytest.mark.parametrize(("code", "bits"), [*CODES, ("prod", 1), ("prod", 4)])
def test_decode(code, bits, d):
    q = Quantizer(d, bits, code)
    reference = reference_of(q)
    # Any bytes are a code; the padding bits are as they come.
    codes = np.random.default_rng(d).integers(0, 256, (33, q.code_size), dtype=np.uint8)
    scalars = np.random.default_rng(1).random((33, q.n_scalars), dtype=np.float32)
    rotated = _core.decode(q.core, codes)
    parts = np.hstack(reference.prod_parts(codes)) if code == "prod" else reference.decode_rotated(codes)
    np.testing.assert_array_equal(rotated, parts)
    for n in COUNTS:
        np.testing.assert_allclose(
            q.decode(codes[:n], scalars[:n]), reference.decode(codes[:n], scalars[:n]), atol=2e-5
        )


@pytest.mark.parametrize("d", [8, 9, 127, 200])
@pytest.mark.parametrize(
    ("code", "bits"), [("chain", b) for b in CHAIN_RATES] + [("mse", b) for b in (1, 2, 4)]
)
def test_lut(code, bits, d):
    q = Quantizer(d, bits, code)
    x = np.random.default_rng(d).standard_normal((3, d)).astype(np.float32)
    lut = q.lut(x)
    expected = reference_of(q).lut(x)
    assert lut.dtype == np.float32
    assert lut.shape == expected.shape
    np.testing.assert_allclose(lut, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", _core.simd_levels())
@pytest.mark.parametrize(("p", "q"), [(1, 4), (1, 1), (2, 1), (3, 2)])
def test_lut_of_few_nibbles(p, q, level):
    rng = np.random.default_rng(p)
    before = _core.simd_level()
    try:
        _core.set_simd(level)
        for memory in (1, 2, 3):
            tables = rng.standard_normal((q, memory, 16)).astype(np.float32)
            for d in range(1, 14):
                x = rng.standard_normal((2, d)).astype(np.float32)
                found = _core.lut(_core.chain_code(d, p, q, tables), x)
                expected = reference_chain.chain_lut(x, tables, d, p, q)
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    finally:
        _core.set_simd(before)


@pytest.mark.parametrize("bits", [3, 5, 6, 7, 8])
def test_no_lut(bits):
    with pytest.raises(ValueError, match="lut"):
        Quantizer(16, bits, "mse").lut(np.zeros((1, 16), dtype=np.float32))


@pytest.mark.parametrize("size", [1, 3, 4, 13, 16, 39])
def test_blocks(size):
    rng = np.random.default_rng(size)
    codes = rng.integers(0, 256, (40, size), dtype=np.uint8)
    assert packing.blocks_for(40, size) == reference_packing.blocks_for(40, size)
    blocks = np.zeros(packing.blocks_for(40, size), dtype=np.uint32)
    expected = blocks.copy()
    for start, stop in [(0, 1), (1, 16), (16, 33), (33, 33), (33, 40), (5, 9)]:
        packing.pack_rows(blocks, start, codes[start:stop])
        reference_packing.pack_rows(expected, start, codes[start:stop], _core.by_place())
        np.testing.assert_array_equal(blocks, expected)
    positions = rng.integers(0, 40, 25)
    np.testing.assert_array_equal(packing.unpack_rows(blocks, positions, size), codes[positions])
    np.testing.assert_array_equal(packing.unpack_rows(blocks, slice(3, 30), size), codes[3:30])
    np.testing.assert_array_equal(
        packing.unpack_rows(blocks, positions, size),
        reference_packing.unpack_rows(expected, positions, size, _core.by_place()),
    )


def stored(q, n):
    """Codes, their blocks, and scalar columns of `n` rows, of which some are equal."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, q.d)).astype(np.float32)
    x[n // 2 : n // 2 + 5] = x[: min(5, n - n // 2)]
    codes, scalars = q.encode(x)
    blocks = np.zeros(packing.blocks_for(n, q.code_size), dtype=np.uint32)
    packing.pack_rows(blocks, 0, codes)
    return codes, blocks, scalars


def assert_searches_like_the_reference(q, n, metric, k=10):
    codes, blocks, scalars = stored(q, n)
    queries = np.random.default_rng(3).standard_normal((7, q.d)).astype(np.float32)
    queries[6] = 0
    scores = reference_of(q).score(queries, codes, scalars, metric)
    columns = np.ascontiguousarray(scalars.T)
    rng = np.random.default_rng(4)
    ids = rng.permutation(10 * n)[:n].astype(np.int64)
    keep = rng.random(n) < 0.5
    mask = np.packbits(keep, bitorder="little")
    for form in (codes, blocks):
        for names, bits, rows in [(None, None, None), (ids, None, None), (ids, mask, keep)]:
            found = scan.search(q, form, columns, queries, k, metric=metric, n=n, ids=names, mask=bits)
            expected = reference_scan.search(scores, k, metric, names, rows)
            np.testing.assert_array_equal(found[1], expected[1])
            if metric == "ip":
                np.testing.assert_array_equal(found[0], expected[0])
            else:  # the query's norm is summed in another order
                np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=1e-6)
    radius = float(np.sort(scores, axis=None)[scores.size // 2 : scores.size // 2 + 2].mean())
    found = scan.range_search(q, blocks, columns, queries, radius, metric=metric, n=n)
    expected = reference_scan.range_search(scores, radius, metric)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6, atol=1e-6)
    for i in range(len(queries)):
        part = slice(found[0][i], found[0][i + 1])
        np.testing.assert_array_equal(np.sort(found[2][part]), np.sort(expected[2][part]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [5, 31, 32, 33, 500])
@pytest.mark.parametrize(
    ("code", "bits"), [("chain", 2), ("chain", 2.5), ("mse", 3), ("mse", 4), ("prod", 2)]
)
def test_search(code, bits, n, metric):
    assert_searches_like_the_reference(Quantizer(100, bits, code, **METRICS[metric]), n, metric)


@pytest.mark.parametrize("d", [8, 9, 127, 384])
@pytest.mark.parametrize(("code", "bits"), [*CODES, ("prod", 1), ("prod", 8)])
def test_search_of_every_code(code, bits, d):
    assert_searches_like_the_reference(Quantizer(d, bits, code), 70, "ip", k=71)


@pytest.mark.parametrize("metric", METRICS)
def test_search_of_nothing(metric):
    q = Quantizer(9, 2, **METRICS[metric])
    codes, columns = np.zeros((0, q.code_size), np.uint8), np.zeros((q.n_scalars, 0), np.float32)
    D, labels = scan.search(q, codes, columns, np.zeros((2, 9), np.float32), 3, metric=metric, n=0)
    np.testing.assert_array_equal(labels, np.full((2, 3), -1))
    worst = np.finfo(np.float32).max
    np.testing.assert_array_equal(D, np.full((2, 3), worst if metric == "l2" else -worst))


def test_config_round_trip():
    for code, bits in [("chain", 1.5), ("mse", 7), ("prod", 2)]:
        q = Quantizer(40, bits, code, seed=3, memory=3, rotation="haar", scale="norm", sketch="gaussian")
        again = Quantizer.from_config(q.config())
        assert again.config() == q.config()
        x = hard_rows(40)
        np.testing.assert_array_equal(again.encode(x)[0], q.encode(x)[0])


def test_code_sizes():
    # bits: code_size at d = 8, 100, 127, 128
    table = {
        0.5: (1, 7, 8, 8), 1: (1, 13, 16, 16), 1.5: (2, 19, 24, 24), 2: (2, 25, 32, 32), 2.5: (3, 31, 40, 40),
        3: (3, 38, 48, 48), 3.5: (4, 44, 56, 56), 4: (4, 50, 64, 64), 5: (5, 63, 80, 80), 6: (6, 75, 96, 96),
        8: (8, 100, 127, 128),
    }  # fmt: skip
    for bits, sizes in table.items():
        assert tuple(Quantizer(d, bits).code_size for d in (8, 100, 127, 128)) == sizes
    assert [Quantizer(100, b, "mse").code_size for b in range(1, 9)] == [13, 25, 38, 50, 63, 75, 88, 100]
    assert [Quantizer(100, b, "prod").code_size for b in (1, 2, 8)] == [13, 26, 101]
