"""The kernel's byte order, pinned by literal tables."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tqkv.layout import PackedLayout, supported  # noqa: E402

CASES = [(d, b) for d in (64, 128, 256) for b in (2.0, 2.5, 3.0, 3.5, 4.0) if supported(d, b, b)]

# head_dim, bits: code_size, tile_bytes, lane_bytes, pieces
SIZES = {
    (64, 2.0): (16, 256, 8, (8,)),
    (64, 3.0): (24, 384, 12, (8, 4)),
    (64, 4.0): (32, 512, 16, (16,)),
    (128, 2.0): (32, 512, 16, (16,)),
    (128, 2.5): (40, 640, 20, (16, 4)),
    (128, 3.0): (48, 768, 24, (16, 8)),
    (128, 3.5): (56, 896, 28, (16, 8, 4)),
    (128, 4.0): (64, 1024, 32, (16, 16)),
    (256, 2.0): (64, 1024, 32, (16, 16)),
    (256, 2.5): (80, 1280, 40, (16, 16, 8)),
    (256, 3.0): (96, 1536, 48, (16, 16, 16)),
    (256, 3.5): (112, 1792, 56, (16, 16, 16, 8)),
    (256, 4.0): (128, 2048, 64, (16, 16, 16, 16)),
}

# At head_dim 64 and 2 bits (16 bytes a token): token and first byte of every run of bytes in a tile.
KEY_RUNS = [(lane // 4 + 8 * half, 4 * (lane % 4)) for lane in range(32) for half in range(2)]
VALUE_RUNS = [
    (2 * (lane % 4) + odd + 8 * half, 2 * (lane // 4))
    for lane in range(32)
    for half in range(2)
    for odd in range(2)
]


def _numbered(layout):
    """Codes whose bytes count up, as low and high byte of the position."""
    order = torch.arange(layout.tile_bytes).view(16, layout.code_size)
    return (order % 256).to(torch.uint8), (order // 256).to(torch.uint8)


def _order(layout):
    low, high = (layout.pack(part)[0].long() for part in _numbered(layout))
    return low + 256 * high


def test_sizes():
    got = {}
    for d, bits in CASES:
        layout = PackedLayout(d, bits, "key")
        got[d, bits] = (layout.code_size, layout.tile_bytes, layout.lane_bytes, layout.pieces)
    assert got == SIZES


@pytest.mark.parametrize(("role", "runs", "size"), [("key", KEY_RUNS, 4), ("value", VALUE_RUNS, 2)])
def test_order_of_a_tile(role, runs, size):
    want = [16 * token + first + i for token, first in runs for i in range(size)]
    assert _order(PackedLayout(64, 2.0, role)).tolist() == want


def test_pieces_of_all_lanes_lie_together():
    """At head_dim 128 and 3.5 bits a lane has 14 bytes of each of 2 tokens, in pieces of 16, 8 and 4."""
    order = _order(PackedLayout(128, 3.5, "key"))
    assert order[:18].tolist() == [*range(14), 8 * 56, 8 * 56 + 1, 14, 15]
    assert order[512:521].tolist() == [*range(8 * 56 + 2, 8 * 56 + 10), 8 * 56 + 16]
    assert order[768:773].tolist() == [*range(8 * 56 + 10, 8 * 56 + 14), 8 * 56 + 24]


@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize(("d", "bits"), CASES)
def test_unpack_inverts_pack(d, bits, role):
    layout = PackedLayout(d, bits, role)
    generator = torch.Generator().manual_seed(1)
    for lead in ((), (2, 3)):
        codes = torch.randint(0, 256, (*lead, 48, layout.code_size), dtype=torch.uint8, generator=generator)
        tiles = layout.pack(codes)
        assert tiles.shape == (*lead, 3, layout.tile_bytes)
        assert torch.equal(layout.unpack(tiles), codes)
        # A tile holds its own tokens only.
        assert torch.equal(layout.pack(codes[..., 16:32, :])[..., 0, :], tiles[..., 1, :])
    assert layout.unpack(layout.pack(codes[:, :, :0])).shape == (2, 3, 0, layout.code_size)


def test_errors():
    assert not supported(96, 4.0, 4.0)
    assert not supported(64, 3.5, 4.0)
    assert not supported(128, 4.0, 1.0)
    with pytest.raises(ValueError, match="head_dim and bits must be"):
        PackedLayout(96, 4.0, "key")
    with pytest.raises(ValueError, match="role must be"):
        PackedLayout(128, 4.0, "query")
    layout = PackedLayout(128, 4.0, "key")
    with pytest.raises(ValueError, match="codes must be"):
        layout.pack(torch.zeros(15, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="tiles must be"):
        layout.unpack(torch.zeros(1, 1000, dtype=torch.uint8))
