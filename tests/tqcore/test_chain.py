"""The fitted chain tables: what they reach, and the layout of the codes they define."""

import numpy as np
import pytest

from tqcore import _core
from tqcore.chain import chain_code, chain_mse, chain_tables
from tqcore.config import CHAIN_RATES, ChainLayout

# Distortion per dimension that a brief fit of the same tables reached, and the rate-distortion bound 4**-bits.
BRIEF_FIT = {
    2: {1: 0.322, 1.5: 0.168, 2: 0.0855, 2.5: 0.0469, 3: 0.0248, 3.5: 0.0134, 4: 0.0063},
    3: {1: 0.313, 1.5: 0.158, 2: 0.0791, 2.5: 0.0414, 3: 0.0214, 3.5: 0.0113, 4: 0.0057},
}
ALL = [(bits, memory) for memory in (2, 3) for bits in CHAIN_RATES]


@pytest.mark.parametrize(("bits", "memory"), ALL)
def test_tables_reach_their_recorded_distortion(bits, memory):
    rows, d = (96, 1024) if memory == 3 else (512, 1024)
    y = np.random.default_rng(99).standard_normal((rows, d)).astype(np.float32)
    code = chain_code(d, bits, memory)
    codes, _, _ = _core.encode(code, y, None)
    errors = ((y - _core.decode(code, codes)) ** 2).astype(np.float64)
    standard_error = errors.std() / np.sqrt(errors.size)
    # Neighbouring errors are slightly dependent, and the seam costs a little at this length.
    assert abs(errors.mean() - chain_mse(bits, memory)) < 5 * standard_error + 0.005 * chain_mse(bits, memory)


@pytest.mark.parametrize(("bits", "memory"), ALL)
def test_recorded_distortion(bits, memory):
    reached = chain_mse(bits, memory)
    assert reached > 4.0**-bits
    if bits in BRIEF_FIT[memory]:
        assert reached <= BRIEF_FIT[memory][bits]
    if memory == 3:
        assert reached < chain_mse(bits, 2)


@pytest.mark.parametrize("bits", CHAIN_RATES)
def test_layout(bits):
    _, q = CHAIN_RATES[bits]
    assert chain_tables(bits, 2).shape == (q, 2, 16)
    assert chain_tables(bits, 3).dtype == np.float32
    for d in (8, 9, 100, 127, 384, 1000):
        layout = ChainLayout(d, bits)
        assert layout.code_size == chain_code(d, bits, 2).code_size
        assert 8 * layout.code_size < d * bits + 12


def test_layout_table():
    got = {
        (d, bits): ChainLayout(d, bits).code_size for d in (100, 384, 1536) for bits in (0.5, 1, 2.5, 4, 8)
    }
    assert got == {
        (100, 0.5): 7, (100, 1): 13, (100, 2.5): 31, (100, 4): 50, (100, 8): 100,
        (384, 0.5): 24, (384, 1): 48, (384, 2.5): 120, (384, 4): 192, (384, 8): 384,
        (1536, 0.5): 96, (1536, 1): 192, (1536, 2.5): 480, (1536, 4): 768, (1536, 8): 1536,
    }  # fmt: skip


@pytest.mark.parametrize(("bits", "memory", "name"), [(7, 2, "bits"), (2, 4, "memory"), (0, 2, "bits")])
def test_unknown_rates_are_refused(bits, memory, name):
    with pytest.raises(ValueError, match=name):
        chain_tables(bits, memory)
