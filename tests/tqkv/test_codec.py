"""Codes on torch tensors against tqcore, and what coding does to states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tqcore import Quantizer, _core
from tqcore.chain import chain_code, chain_mse
from tqcore.codebook import distortion, lloyd_max
from tqcore.prod import Prod
from tqkv.codec import StateCodec
from tqkv.codes import ChainCode, ProductCode, ScalarCode
from tqkv.tables import byte_tables

RATES = (2.0, 2.5, 3.0, 3.5, 4.0)
CPU = torch.device("cpu")


def gaussian(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codec(d, bits, code="chain", memory=2, scale="unbiased", seed=0):
    return StateCodec(d, bits, code, memory, scale, seed, CPU)


@pytest.mark.parametrize("d", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("bits", RATES)
def test_chain_is_tqcores(d, bits):
    y = gaussian(33, d)
    code = ChainCode(d, bits, 2, torch.device("cpu"))
    codes, second = code.encode(y)
    want = _core.encode(chain_code(d, bits, 2), y.numpy(), None)[0]
    assert second is None
    assert codes.shape == (33, code.code_size)
    np.testing.assert_array_equal(codes.numpy(), want)
    # What codes stand for is rounded to bytes, by at most a step for each of two tables.
    decoded, exact = code.decode(codes).numpy(), _core.decode(chain_code(d, bits, 2), want)
    assert np.abs(decoded - exact).max() <= 2 * byte_tables("chain", d, bits).steps.max()
    assert ((decoded - exact) ** 2).mean() < 0.02 * chain_mse(bits, 2)
    exact_code = ChainCode(d, bits, 3, torch.device("cpu"))
    codes, _ = exact_code.encode(y)
    np.testing.assert_array_equal(
        exact_code.decode(codes).numpy(), _core.decode(chain_code(d, bits, 3), codes.numpy())
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scalar_is_tqcores(bits):
    y = gaussian(33, 96)
    core = _core.scalar_code(96, bits, lloyd_max(96, bits))
    codes, _ = ScalarCode(96, bits, CPU).encode(y)
    np.testing.assert_array_equal(codes.numpy(), _core.encode(core, y.numpy(), None)[0])
    np.testing.assert_array_equal(
        ScalarCode(96, bits, CPU).decode(codes).numpy(), _core.decode(core, codes.numpy())
    )


@pytest.mark.parametrize("bits", [2, 3])
def test_scalar_between_two_rates(bits):
    y = gaussian(33, 96)
    codes, _ = ScalarCode(96, bits + 0.5, CPU).encode(y)
    assert codes.shape[1] == (48 * (bits + 1) + 48 * bits) // 8
    decoded = ScalarCode(96, bits + 0.5, CPU).decode(codes)
    for part, b in ((slice(0, 48), bits + 1), (slice(48, 96), bits)):
        centroids = torch.from_numpy(lloyd_max(96, b))
        nearest = centroids[(y[:, part, None] - centroids).abs().argmin(-1)]
        torch.testing.assert_close(decoded[:, part], nearest, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_product_is_tqcores(bits):
    y = gaussian(33, 64)
    code, prod = ProductCode(64, bits, 5, CPU), Prod(64, bits, "orthogonal", 5)
    codes, second = code.encode(y)
    want, factors = prod.encode(y.numpy())
    # The sketch is a matrix product here and a fast transform there: signs of values near zero may differ.
    assert (codes.numpy() != want).mean() < 1e-3
    np.testing.assert_allclose(second.numpy(), factors, rtol=1e-5)
    scalar, z = prod.decode_parts(codes.numpy())
    expected = scalar * 2.0 + prod.unproject(z) * 0.5
    scalars = torch.tensor([[2.0], [0.5]]).expand(2, 33)
    np.testing.assert_allclose(code.reconstruct(codes, scalars).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("code", ["chain", "mse"])
def test_codec_is_the_quantizer(code):
    """The dense rotation here and the fast one of tqcore agree up to values within rounding of a boundary."""
    x = gaussian(1, 1, 200, 128, seed=4)
    codes, scalars = codec(128, 3.0, code, scale="unbiased").encode(x)
    quantizer = Quantizer(128, 3, code)
    want, scale = quantizer.encode(x[0, 0].numpy())
    same = (codes[0, 0].numpy() == want).all(axis=1)
    assert same.mean() > 0.97
    # The cache rounds what chains stand for to bytes.
    rounding = 2e-3 if code == "mse" else 4e-2
    np.testing.assert_allclose(scalars[0, 0, 0].float().numpy()[same], scale[same, 0], rtol=rounding / 2)
    back = codec(128, 3.0, code).decode(codes, scalars)[0, 0].numpy()
    np.testing.assert_allclose(back[same], quantizer.decode(want, scale)[same], rtol=2e-3, atol=rounding)


@pytest.mark.parametrize("bits", [2.0, 4.0])
def test_scalar_codes_that_the_kernel_reads_are_rounded(bits):
    y = gaussian(500, 128)
    exact = ScalarCode(128, bits, CPU)
    rounded = codec(128, bits, "mse").rows
    codes, _ = exact.encode(y)
    assert torch.equal(rounded.encode(y)[0], codes)
    errors = [float((code.decode(codes) - y).square().mean()) for code in (exact, rounded)]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)
    assert not torch.equal(exact.decode(codes), rounded.decode(codes))


@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize("memory", [2, 3])
def test_error_is_the_chains(bits, memory):
    x = gaussian(1, 2, 300, 128)
    c = codec(128, bits, memory=memory, scale="least_squares")
    error = (c.decode(*c.encode(x)) - x).square().mean() / x.square().mean()
    assert error == pytest.approx(chain_mse(bits, memory), rel=0.06)


def test_error_is_the_papers():
    x = gaussian(1, 2, 300, 128)
    c = codec(128, 3.0, "mse", scale="norm")
    error = (c.decode(*c.encode(x)) - x).square().mean() / x.square().mean()
    assert error == pytest.approx(distortion(128, 3), rel=0.05)


@pytest.mark.parametrize("bits", RATES)
def test_unbiased_scale(bits):
    x = gaussian(1, 1, 50, 64)
    c = codec(64, bits)
    estimate = (c.decode(*c.encode(x)) * x).sum(-1)
    torch.testing.assert_close(estimate, x.square().sum(-1), rtol=1e-3, atol=0)


def test_mean_is_put_back():
    x = gaussian(2, 3, 60, 64) + 50 * gaussian(1, 3, 1, 64, seed=2)
    c = codec(64, 4.0)
    c.fit_mean(x)
    torch.testing.assert_close(c.mean[:, 0], x.mean(dim=(0, 2)), rtol=1e-5, atol=1e-4)
    error = (c.decode(*c.encode(x)) - x).square().mean()
    assert error < 0.01


def test_odd_states():
    """Zeros give zeros, states beyond float stay visible, and one state does not touch another."""
    x = gaussian(1, 1, 5, 64)
    x[0, 0, 1] = 0
    x[0, 0, 2, 7] = torch.nan
    x[0, 0, 3, 7] = torch.inf
    c = codec(64, 2.0)
    codes, scalars = c.encode(x)
    assert scalars.dtype == torch.float16
    back = c.decode(codes, scalars)[0, 0]
    assert (back[1] == 0).all()
    assert back[2].isnan().all()
    assert back[3].isnan().all()
    alone = c.decode(*c.encode(x[:, :, 4:]))[0, 0, 0]
    torch.testing.assert_close(back[4], alone)


def test_chunks_do_not_show(monkeypatch):
    x = gaussian(2, 2, 37, 64)
    c = codec(64, 3.5)
    whole = c.encode(x)
    monkeypatch.setattr("tqkv.codec._ROWS", 20)
    for got, want in zip(c.encode(x), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_no_tokens():
    codes, scalars = codec(64, 3.5).encode(gaussian(2, 2, 0, 64))
    assert codes.shape == (2, 2, 0, 28)
    assert scalars.shape == (1, 2, 2, 0)
