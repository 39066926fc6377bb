"""The layered code: what it computes against the reference, and searches by its first layer."""

import math

import numpy as np
import pytest

from tqcore import Quantizer, _core, packing, reference, scan
from tqcore.chain import chain_mse, chain_tables, mixed_code, mixed_mse
from tqcore.config import CHAIN_RATES, layer_bits

LEVELS = _core.simd_levels()
RATES = (3, 3.5, 4, 5, 6, 8)  # whose second layer is one chain


@pytest.fixture(params=LEVELS)
def level(request):
    before = _core.simd_level()
    assert _core.set_simd(request.param)
    yield request.param
    _core.set_simd(before)


def rows(n, d, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) + 0.2
    return (x * rng.uniform(0.2, 3.0, (n, 1))).astype(np.float32)


def stored(quantizer, x):
    codes, scalars = quantizer.encode(x)
    head = quantizer.core.head_size
    blocks = np.zeros(packing.blocks_for(len(x), head), np.uint32)
    packing.pack_rows(blocks, 0, codes[:, :head])
    return blocks, np.ascontiguousarray(scalars.T), np.ascontiguousarray(codes[:, head:])


def found(quantizer, x, q, k, metric, **options):
    blocks, scalars, tails = stored(quantizer, x)
    return scan.search(quantizer, blocks, scalars, q, k, metric=metric, n=len(x), tails=tails, **options)


@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize(("d", "memory"), [(48, 2), (37, 2), (40, 3)])
def test_codes_and_scales_are_those_of_the_reference(level, bits, d, memory):
    x = rows(21, d)
    x[3] = 0
    quantizer = Quantizer(d, bits, "layered", memory=memory, seed=5, store_norm=True)
    tables = [chain_tables(rate, memory) for rate in layer_bits(bits)]
    layers = reference.layers.Layers(
        d,
        tables,
        [CHAIN_RATES[r] for r in layer_bits(bits)],
        chain_mse(layer_bits(bits)[0], memory),
        seed=5,
    )
    y = reference.Quantizer(d, bits, seed=5).rotate(
        reference.rotation.normalize(x, reference.rotation.norm(x))
    )
    codes, scalars = quantizer.encode(x)
    expected = layers.encode(y)
    assert np.array_equal(codes, expected)
    yhat = layers.decode(codes)
    np.testing.assert_allclose(quantizer.layers.decode(codes), yhat, atol=2e-5)
    norms = reference.rotation.norm(x)
    np.testing.assert_allclose(
        scalars[:, 0], reference.scan.scale(norms, y, yhat.astype(np.float32), "unbiased"), rtol=2e-6
    )


@pytest.mark.parametrize("bits", [*RATES, 3.9, 7])
@pytest.mark.parametrize("memory", [2, 3])
def test_error_is_the_product_of_the_errors_of_its_layers(bits, memory):
    x = np.random.default_rng(1).standard_normal((400, 256)).astype(np.float32)
    quantizer = Quantizer(256, bits, "layered", memory=memory, scale="norm")
    error = ((quantizer.decode(*quantizer.encode(x)) - x) ** 2).mean()
    coarse, fine = layer_bits(bits)
    assert error == pytest.approx(chain_mse(coarse, memory) * mixed_mse(256, fine, memory), rel=0.06)


def test_a_second_layer_of_two_rates(level):
    y = reference.rotation.normalize(rows(9, 72), reference.rotation.norm(rows(9, 72)))
    bits = 4 - 32 / 72
    mixed, whole = (Quantizer(72, b, "layered", seed=5).layers for b in (bits, 4))
    codes, coarse = mixed.encode(y)[0], mixed.core.head_size
    assert codes.shape[1] == 72 * bits // 8
    assert np.array_equal(codes[:, :coarse], whole.encode(y)[0][:, :coarse])
    error = y - _core.decode(_core.join_codes([whole._first]), codes[:, :18].copy())
    scaled = whole._rotation.rotate(error) / whole.gain
    expected = _core.encode(mixed_code(72, layer_bits(bits)[1], 2), scaled, None, 1)[0]
    assert np.array_equal(codes[:, 18:], expected)


def test_inner_products_are_those_of_decoded_vectors():
    x, q = rows(60, 64), rows(7, 64, 1)
    quantizer = Quantizer(64, 4, "layered")
    y = quantizer.decode(*quantizer.encode(x)).astype(np.float64)
    distances, ids = found(quantizer, x, q, 60, "ip", deviations=math.inf)
    expected = q.astype(np.float64) @ y.T
    np.testing.assert_allclose(distances, np.take_along_axis(expected, ids, 1), rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(("d", "bits"), [(64, 4), (50, 3), (130, 8), (64, 4.3)])
def test_infinite_deviations_find_what_brute_force_finds(level, metric, d, bits):
    x, q = rows(700, d), rows(9, d, 1)
    quantizer = Quantizer(d, bits, "layered", store_norm=metric == "l2", normalize=metric == "cosine")
    everything = found(quantizer, x, q, len(x), metric, deviations=math.inf)
    for threads in (1, 3):
        top = found(quantizer, x, q, 10, metric, deviations=math.inf, threads=threads)
        for whole, part in zip(everything, top, strict=True):
            assert np.array_equal(whole[:, :10], part)


@pytest.mark.parametrize("bits", [*RATES, 3.9])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_default_deviations_lose_next_to_nothing(level, bits, metric):
    x, q = rows(6000, 96), rows(40, 96, 1)
    quantizer = Quantizer(96, bits, "layered", store_norm=metric == "l2")
    whole = found(quantizer, x, q, 10, metric, deviations=math.inf)[1]
    staged = found(quantizer, x, q, 10, metric)[1]
    kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(whole, staged, strict=True)])
    assert kept >= 0.995


def test_few_deviations_lose_more_than_many():
    x, q = rows(30000, 32), rows(60, 32, 1)
    quantizer = Quantizer(32, 4, "layered")
    whole = found(quantizer, x, q, 10, "ip", deviations=math.inf)[1]
    kept = [np.mean(found(quantizer, x, q, 10, "ip", deviations=z)[1] == whole) for z in (0.0, 1.0, 4.0)]
    assert kept[0] < kept[1] < kept[2]


@pytest.mark.parametrize("deviations", [3, math.inf])
@pytest.mark.parametrize("spacing", [None, 2, 40])
def test_rows_and_blocks_give_the_same(level, deviations, spacing):
    x, q = rows(1501, 50), rows(5, 50, 1)
    quantizer = Quantizer(50, 5, "layered", store_norm=True)
    blocks, scalars, tails = stored(quantizer, x)
    allowed = np.zeros(1504, dtype=bool)
    allowed[1::spacing] = True
    mask = None if spacing is None else np.packbits(allowed, bitorder="little")
    options = {"metric": "l2", "n": len(x), "mask": mask}
    of_blocks, of_rows = (
        scan.search(quantizer, codes, scalars, q, 10, tails=tail, deviations=deviations, **options)
        for codes, tail in ((blocks, tails), (quantizer.encode(x)[0], None))
    )
    for mine, theirs in zip(of_blocks, of_rows, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_range_search_finds_what_whole_scores_find(level, metric):
    x, q = rows(700, 50), rows(4, 50, 1)
    quantizer = Quantizer(50, 4, "layered", store_norm=metric == "l2")
    blocks, scalars, tails = stored(quantizer, x)
    distances, ids = found(quantizer, x, q, len(x), metric, deviations=math.inf)
    radius = float(np.median(distances))
    lims, near, near_ids = scan.range_search(
        quantizer, blocks, scalars, q, radius, metric=metric, n=len(x), tails=tails
    )
    inside = distances < radius if metric == "l2" else distances > radius
    assert np.array_equal(np.diff(lims), inside.sum(1))
    assert np.array_equal(near, distances[inside])
    assert np.array_equal(near_ids, ids[inside])


def test_blocks_of_a_layer_need_the_rest():
    x = rows(40, 64)
    quantizer = Quantizer(64, 4, "layered")
    blocks, scalars, tails = stored(quantizer, x)
    for wrong in (None, tails[:, 1:].copy(), tails[:39]):
        with pytest.raises(ValueError, match="tails"):
            scan.search(quantizer, blocks, scalars, x, 3, metric="ip", n=40, tails=wrong)
    with pytest.raises(ValueError, match="head_words"):
        _core.join_codes([quantizer.core], quantizer.code_size // 4)


def test_a_mask_and_a_short_last_block_are_respected():
    x, q = rows(5003, 64), rows(12, 64, 1)
    quantizer = Quantizer(64, 4, "layered")
    allowed = np.zeros(5008, dtype=bool)
    allowed[4::7] = True
    mask = np.packbits(allowed, bitorder="little")
    ids = found(quantizer, x, q, 20, "ip", mask=mask)[1]
    assert (ids % 7 == 4).all()
    assert (ids < 5003).all()
    whole = found(quantizer, x, q, 20, "ip", mask=mask, deviations=math.inf)[1]
    assert np.mean(ids == whole) > 0.99


@pytest.mark.parametrize("bits", [1, 2.9, 8.1, "4", None])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be a number from 3 to 8 for code 'layered', got "):
        Quantizer(64, bits, "layered")


def test_its_configuration_makes_it_again():
    x = rows(30, 32)
    quantizer = Quantizer(32, 5, "layered", memory=3, seed=9)
    again = Quantizer.from_config(quantizer.config())
    assert again.same_as(quantizer)
    assert np.array_equal(again.encode(x)[0], quantizer.encode(x)[0])
