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
        assert layout.words == -(-quantizer.code_size // 4)


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
    from tqcore.gpu.layout import LANES, pack_blocks, unpack_blocks

    codes = torch.from_numpy(np.random.default_rng(n).integers(0, 256, (n, 13), dtype=np.uint8))
    blocks = torch.zeros(-(-(n + 5) // LANES), 4, LANES, dtype=torch.int32)
    pack_blocks(blocks, 5, codes)
    assert torch.equal(unpack_blocks(blocks, torch.arange(5, n + 5), 13), codes)
    row = (n + 4) // LANES, (n + 4) % LANES
    assert int(blocks[row[0], 0, row[1]]) & 0xFFFFFFFF == int.from_bytes(
        bytes(codes[-1, :4].tolist()), "little"
    )


def test_rows_that_fit_no_shared_memory_are_refused() -> None:
    from tqcore.gpu.layout import CodeLayout

    with pytest.raises(ValueError, match="at most 6800 bytes on a CUDA device"):
        CodeLayout(Quantizer(16384, 4), torch.device("cpu"))
