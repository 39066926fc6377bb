"""Chain codes and rotations on CUDA, bit for bit against the CPU core."""

from __future__ import annotations

import numpy as np
import pytest

from tqcore import _core
from tqcore.chain import chain_code
from tqcore.config import CHAIN_RATES
from tqcore.rotation import HadamardRotation

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu


def _rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    y = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    if n > 2:
        y[1] = 0
        y[2, 1:] *= 1e-3
    return _core.normalize(y)[0]


@pytest.mark.parametrize("memory", [2, 3])
@pytest.mark.parametrize("bits", list(CHAIN_RATES))
def test_codes_are_those_of_the_cpu(bits: float, memory: int) -> None:
    from tqcore.gpu import decode_chain, encode_chain

    for d, n in ((8, 33), (100, 31), (129, 5), (768, 65)):
        y = _rows(n, d)
        core = chain_code(d, bits, memory)
        codes, dots, _ = _core.encode(core, y, None)
        ours, our_dots = encode_chain(torch.from_numpy(y).cuda(), bits, memory)
        np.testing.assert_array_equal(ours.cpu().numpy(), codes)
        np.testing.assert_array_equal(our_dots.cpu().numpy(), dots[:, 0])
        decoded = decode_chain(ours, d, bits, memory)
        np.testing.assert_array_equal(decoded.cpu().numpy(), _core.decode(core, codes))


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17])
def test_any_number_of_rows(n: int) -> None:
    from tqcore.gpu import encode_chain

    y = _rows(n, 64)
    codes, _ = encode_chain(torch.from_numpy(y).cuda(), 2.0)
    if n:
        np.testing.assert_array_equal(codes.cpu().numpy(), _core.encode(chain_code(64, 2, 2), y, None)[0])
    assert codes.shape == (n, 16)


@pytest.mark.parametrize("memory", [2, 3])
def test_long_rows_keep_back_pointers_in_device_memory(memory: int) -> None:
    from tqcore.gpu import encode_chain

    y = _rows(3, 16384)
    codes, _ = encode_chain(torch.from_numpy(y).cuda(), 4.0, memory)
    np.testing.assert_array_equal(codes.cpu().numpy(), _core.encode(chain_code(16384, 4, memory), y, None)[0])


@pytest.mark.parametrize("d", [8, 9, 64, 100, 384, 768, 1000, 1024, 3072])
def test_rotation_is_that_of_the_cpu(d: int) -> None:
    from tqcore.gpu.rotation import hadamard_rotate, normalize, sign_words

    x = np.random.default_rng(1).standard_normal((33, d)).astype(np.float32) * 3
    x[4] = 0
    rotation = HadamardRotation(d, 7)
    signs = sign_words(rotation.signs).cuda()
    normal, norms = _core.normalize(x)
    y, our_norms = normalize(torch.from_numpy(x).cuda(), signs)
    np.testing.assert_array_equal(our_norms.cpu().numpy(), norms)
    np.testing.assert_array_equal(y.cpu().numpy(), rotation.rotate(normal))
    back = hadamard_rotate(y, signs, inverse=True)
    np.testing.assert_array_equal(back.cpu().numpy(), rotation.unrotate(rotation.rotate(normal)))


def test_refuses_what_is_not_on_the_device() -> None:
    from tqcore.gpu import encode_chain

    with pytest.raises(TypeError, match="y must be a 2-dimensional"):
        encode_chain(torch.zeros(2, 8), 4.0)
