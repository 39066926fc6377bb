"""Chain codes between two rates: some dimensions at the upper, the others at the lower one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqcore import _core, scan
from tqcore.calibration import calibrate
from tqcore.chain import chain_mse, chain_tables, mixed_mse
from tqcore.config import CHAIN_RATES, ChainLayout, chain_segments
from tqcore.plan import Plan
from tqcore.quantizer import Quantizer
from tqcore.reference import chain as reference
from tqcore.reference import packing
from tqcore.reference.scan import search


@settings(deadline=None)
@given(st.integers(8, 4096), st.floats(0.5, 8))
def test_segments_fill_the_bytes_they_may(d, bits):
    segments = chain_segments(d, bits)
    size = sum(ChainLayout(*s).code_size for s in segments)
    assert sum(dims for dims, _ in segments) == d
    assert all(dims >= 8 and rate in CHAIN_RATES for dims, rate in segments)
    low = max(rate for rate in CHAIN_RATES if rate <= bits)
    if segments == ((d, low),):
        return  # a rate of its own, or too few dimensions to mix
    (upper, high), (_, rest) = segments
    assert rest < bits < high
    assert size <= d * bits // 8
    more = (
        [ChainLayout(upper + 8, high).code_size, ChainLayout(d - upper - 8, rest).code_size]
        if d - upper >= 16
        else [d]
    )
    assert sum(more) > d * bits // 8


@pytest.mark.parametrize("level", _core.simd_levels())
@pytest.mark.parametrize(("d", "bits", "memory"), [(96, 1.9, 2), (200, 3.7, 2), (64, 5.3, 3)])
def test_codes_are_those_of_the_two_chains(level, d, bits, memory):
    quantizer = Quantizer(d, bits, memory=memory)
    x = np.random.default_rng(0).standard_normal((21, d)).astype(np.float32)
    y = quantizer.rotate(_core.normalize(x, 1)[0])
    before = _core.simd_level()
    assert _core.set_simd(level)
    try:
        codes, dots, _ = _core.encode(quantizer.core, x, quantizer.signs, 1)
        one_codes, one_dots, _ = _core.encode(quantizer.core, x[:1], quantizer.signs, 1)
    finally:
        _core.set_simd(before)
    first, byte = 0, 0
    for part, (dims, rate) in enumerate(chain_segments(d, bits)):
        size = ChainLayout(dims, rate).code_size
        mine = np.ascontiguousarray(codes[:, byte : byte + size])
        alone = Quantizer(dims, rate, memory=memory)
        decoded = _core.decode(alone.core, mine)
        part_of_y = np.ascontiguousarray(y[:, first : first + dims])
        np.testing.assert_array_equal(_core.encode(alone.core, part_of_y, None, 1)[0], mine)
        np.testing.assert_allclose(
            dots[:, part], (y[:, first : first + dims] * decoded).sum(axis=1), rtol=1e-4
        )
        p, q = CHAIN_RATES[rate]
        nibbles = packing.unpack_nibbles(mine, ChainLayout(dims, rate).n_nibbles)
        np.testing.assert_array_equal(
            decoded, reference.chain_decode(nibbles, chain_tables(rate, memory), dims, p, q)
        )
        first, byte = first + dims, byte + size
    assert byte == quantizer.code_size <= d * bits / 8
    np.testing.assert_array_equal(one_codes, codes[:1])
    np.testing.assert_allclose(one_dots, dots[:1], rtol=1e-6)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_search_is_exact_over_reconstructions(metric):
    quantizer = Quantizer(100, 2.3, store_norm=metric == "l2")
    rng = np.random.default_rng(1)
    x, q = (
        rng.standard_normal((500, 100)).astype(np.float32),
        rng.standard_normal((9, 100)).astype(np.float32),
    )
    codes, scalars = quantizer.encode(x)
    decoded = quantizer.decode(codes, scalars).astype(np.float64)
    scores = q.astype(np.float64) @ decoded.T
    if metric == "l2":
        scores = (
            (q.astype(np.float64) ** 2).sum(axis=1)[:, None] + scalars[:, 1].astype(np.float64) - 2 * scores
        )
    expected = search(scores, 10, metric)
    columns = np.ascontiguousarray(scalars.T)
    distances, ids = scan.search(quantizer, codes, columns, q, 10, metric=metric, n=500)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-4, atol=1e-3)


def test_error_lies_between_those_of_the_rates():
    x = np.random.default_rng(2).standard_normal((400, 256)).astype(np.float32)
    errors = {}
    for bits in (2, 2.25, 2.5):
        quantizer = Quantizer(256, bits, scale="norm")
        errors[bits] = float(((quantizer.decode(*quantizer.encode(x)) - x) ** 2).mean())
    assert errors[2.5] < errors[2.25] < errors[2]
    assert errors[2.25] == pytest.approx(mixed_mse(256, 2.25, 2), rel=0.05)
    assert chain_mse(2.5, 2) < mixed_mse(256, 2.25, 2) < chain_mse(2, 2)


def test_plans_take_mixtures():
    x = np.random.default_rng(3).standard_normal((6000, 64)).astype(np.float32)
    centred = calibrate(x, 2.25, memory=2, seed=0)
    assert centred.centres_only
    assert repr(centred) == "Plan(centred, 2.5, 2 bits)"
    mapped = calibrate(x * np.geomspace(1, 0.01, 64, dtype=np.float32), 2.25, memory=2, seed=0)
    assert not mapped.centres_only
    described = {"segments": [[32, 2.5], [32, 2.0]], "forward": False, "backward": False}
    assert centred.describe() == described
    for wrong in ([[32, 2.0], [32, 2.5]], [[32, 3.0], [32, 2.0]], [[32, 2.5], [16, 2.0], [16, 1.5]]):
        with pytest.raises(ValueError, match="all of them without a matrix"):
            Plan.shapes(64, described | {"segments": wrong})
    for plan in (centred, mapped):
        quantizer = Quantizer(64, 2.25, plan=plan)
        codes, scalars = quantizer.encode(x)
        assert codes.shape[1] <= 18
        copy = Quantizer.from_config(quantizer.config(), plan.arrays())
        np.testing.assert_array_equal(copy.encode(x)[0], codes)
        assert quantizer.decode(codes, scalars).shape == x.shape


def test_what_mixtures_are_not_for():
    with pytest.raises(ValueError, match="lut"):
        Quantizer(64, 1.9).lut(np.zeros((1, 64), np.float32))
    for bits in (0.4, 8.1, float("nan"), float("inf"), "2", True, None):
        with pytest.raises(ValueError, match=r"bits must be a number from 0\.5 to 8 for code 'chain', got"):
            Quantizer(64, bits)
    torch = pytest.importorskip("torch")
    from tqcore.gpu.quantizer import DeviceQuantizer

    with pytest.raises(ValueError, match=r"device 'cuda' takes bits among .*, got 1\.9"):
        DeviceQuantizer(Quantizer(64, 1.9), torch.device("cpu"))
