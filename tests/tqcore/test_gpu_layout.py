"""What the search kernels are told of a code, checked without a device against the decoder of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from tqcore import _core
from tqcore.calibration import calibrate
from tqcore.config import CHAIN_RATES
from tqcore.quantizer import Quantizer

torch = pytest.importorskip("torch")


def _decoded(layout, codes: np.ndarray) -> np.ndarray:
    nibbles = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)
    dims, tables = layout.dims.numpy(), layout.tables.numpy()
    total = tables[dims[:, 3], 0, nibbles[:, dims[:, 0]]]
    for age in (1, 2):
        if (dims[:, age] >= 0).all():
            total = total + tables[dims[:, 3], age, nibbles[:, dims[:, age]]]
    return total


@pytest.mark.parametrize("memory", [2, 3])
@pytest.mark.parametrize("bits", list(CHAIN_RATES))
def test_layout_decodes_every_rate(bits: float, memory: int) -> None:
    from tqcore.gpu.layout import CodeLayout

    for d in (8, 33, 100):
        quantizer = Quantizer(d, bits, memory=memory)
        layout = CodeLayout(quantizer, torch.device("cpu"))
        codes, _ = quantizer.encode(np.random.default_rng(d).standard_normal((9, d)).astype(np.float32))
        np.testing.assert_array_equal(_decoded(layout, codes), _core.decode(quantizer.core, codes))
        assert layout.words == -(-quantizer.code_size // 16) * 4


def test_layout_decodes_the_segments_of_a_plan() -> None:
    from tqcore.gpu.layout import CodeLayout

    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 96)) * np.linspace(3, 0.05, 96)).astype(np.float32)
    quantizer = Quantizer(96, 2).with_plan(calibrate(x, 2.0, memory=2, seed=0))
    layout = CodeLayout(quantizer, torch.device("cpu"))
    assert len(layout.segments) > 1
    codes, _ = quantizer.encode(x[:20])
    np.testing.assert_array_equal(_decoded(layout, codes), _core.decode(quantizer.core, codes))


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_blocks_hold_rows(n: int) -> None:
    from tqcore.gpu.layout import LANES, UNIT, pack_blocks, unpack_blocks

    codes = torch.from_numpy(np.random.default_rng(n).integers(0, 256, (n, 13), dtype=np.uint8))
    blocks = torch.zeros(-(-(n + 5) // LANES), 1, LANES, UNIT, dtype=torch.int32)
    pack_blocks(blocks, 5, codes)
    assert torch.equal(unpack_blocks(blocks, torch.arange(5, n + 5), 13), codes)
    row = (n + 4) // LANES, (n + 4) % LANES
    assert int(blocks[row[0], 0, row[1], 0]) & 0xFFFFFFFF == int.from_bytes(
        bytes(codes[-1, :4].tolist()), "little"
    )


def test_rows_that_fit_no_shared_memory_are_refused() -> None:
    from tqcore.gpu.layout import CodeLayout

    with pytest.raises(ValueError, match="at most 6800 bytes on a CUDA device"):
        CodeLayout(Quantizer(16384, 4), torch.device("cpu"))
    with pytest.raises(ValueError, match="d must be at most 16384 on a CUDA device"):
        CodeLayout(Quantizer(16400, 1), torch.device("cpu"))


@pytest.mark.parametrize("memory", [2, 3])
@pytest.mark.parametrize("bits", [1.0, 2.0, 3.0, 4.0, 6.0, 8.0])
def test_byte_tables_are_close_and_within_the_range_of_the_kernel(bits: float, memory: int) -> None:
    from tqcore.chain import chain_tables
    from tqcore.gpu.layout import ByteTables

    bytes_, tables = ByteTables(bits, memory), chain_tables(bits, memory)
    assert bytes_.entries.max() <= 127
    assert bytes_.entries.max(axis=2).astype(int).sum(axis=1).max() <= 255
    for phase in range(bytes_.phases):
        left = tables[phase] - bytes_.step[phase] * bytes_.entries[phase]
        # The zero spreads over the ages as it likes; what is left of sums is what counts.
        spread = np.ptp(left, axis=1).sum()
        assert spread <= memory * bytes_.step[phase] * 1.0001
        middle = left.mean(axis=1).sum() + bytes_.step[phase] * bytes_.zero[phase]
        assert abs(middle) < 1e-6


def test_rates_of_long_periods_have_no_byte_tables() -> None:
    from tqcore.gpu.layout import CodeLayout

    assert CodeLayout(Quantizer(64, 2), torch.device("cpu")).bytes is not None
    for bits in (1.5, 2.5, 3.5, 5, 0.5):
        assert CodeLayout(Quantizer(64, bits), torch.device("cpu")).bytes is None
