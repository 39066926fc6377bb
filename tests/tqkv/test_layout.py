import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from packed import random_problem, random_states  # noqa: E402
from tqcore.chain import chain_code, chain_tables  # noqa: E402
from tqcore.config import CHAIN_RATES  # noqa: E402
from tqcore.rotation import HadamardRotation  # noqa: E402
from tqkv.kernels import reference  # noqa: E402
from tqkv.kernels.decode import decode_attention  # noqa: E402
from tqkv.layout import PackedLayout, supported  # noqa: E402

RATES = (2.0, 2.5, 3.0, 3.5, 4.0)


def test_sizes_of_every_layout():
    # (head_dim, bits): bytes of a code, of a tile, of a lane's part of it, and its loads.
    table = {
        (64, 2.0): (16, 256, 8, (8,)),
        (64, 2.5): (20, 320, 10, (8, 2)),
        (64, 3.0): (24, 384, 12, (8, 4)),
        (64, 3.5): (28, 448, 14, (8, 4, 2)),
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
    for (head_dim, bits), sizes in table.items():
        for role in ("key", "value"):
            layout = PackedLayout(head_dim, bits, role)
            assert (layout.code_size, layout.tile_bytes, layout.lane_bytes, layout.pieces) == sizes


def test_where_bytes_lie():
    # The nibbles of byte b of token n are those of 16 n + b, so those of 64 dimensions at 2 bits fill 0 to 255.
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)

    def nibbles(*pairs):
        """Bytes of nibbles (token, place), two a byte."""
        values = [(16 * token + place // 2) >> 4 * (place % 2) & 15 for token, place in pairs]
        return [lo | hi << 4 for lo, hi in zip(values[::2], values[1::2], strict=True)]

    # At 2 bits a period is a nibble, so four places in a row of one token lie side by side.
    keys = PackedLayout(64, 2.0, "key").pack(codes).view(32, 8)
    for lane, tokens, first in ((0, (0, 1), 0), (31, (14, 15), 24)):
        order = [(token, first + four + e) for four in (0, 4) for token in tokens for e in range(4)]
        assert keys[lane].tolist() == nibbles(*order)
    values = PackedLayout(64, 2.0, "value").pack(codes).view(32, 8)
    assert values[0].tolist() == nibbles(*((token, place) for place in range(4) for token in range(4)))
    assert values[31].tolist() == nibbles(
        *((token, place) for place in range(28, 32) for token in range(12, 16))
    )
    codes = torch.randint(0, 256, (16, 32), dtype=torch.uint8)
    row = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)
    values = PackedLayout(128, 2.0, "value").pack(codes).view(32, 16)
    wanted = [int(row[token, chunk * 4 + j]) for j in range(4) for chunk in (3, 11) for token in range(8, 12)]
    lane = values[4 * 3 + 2]
    assert torch.stack([lane & 15, lane >> 4], dim=-1).flatten().tolist() == wanted


def test_four_periods_of_a_key_lie_side_by_side():
    # 3.5 bits: 7 nibbles a period, 14 in a quarter of 64 dimensions, 56 in one of 256.
    small, large = PackedLayout(64, 3.5, "key").source(), PackedLayout(256, 3.5, "key").source()
    # Lane 6 has quarter 2 of tokens 2 and 3. The first load of either layout brings 16 or 32 nibbles.
    assert small.view(-1)[6 * 16 : 6 * 16 + 8].tolist() == [
        token * 56 + 28 + place for first in (0, 1) for token in (2, 3) for place in (first, first + 7)
    ]
    assert large.view(-1)[6 * 32 : 6 * 32 + 16].tolist() == [
        token * 224 + 112 + first + 7 * e for first in (0, 1) for token in (2, 3) for e in range(4)
    ]


@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_unpack_is_the_inverse(head_dim, bits, role):
    layout = PackedLayout(head_dim, bits, role)
    assert sorted(layout.source().tolist()) == list(range(2 * layout.tile_bytes))
    codes = torch.randint(0, 256, (2, 3, 48, layout.code_size), dtype=torch.uint8)
    tiles = layout.pack(codes)
    assert tiles.shape == (2, 3, 3, layout.tile_bytes)
    assert torch.equal(layout.unpack(tiles), codes)
    assert layout.pack(codes[:, :, :0]).shape == (2, 3, 0, layout.tile_bytes)


def test_what_is_supported():
    assert supported(128, 3.5)
    assert not supported(96, 3.5)
    assert not supported(128, 5.0)
    with pytest.raises(ValueError, match=r"head_dim must be one of .* got head_dim=96"):
        PackedLayout(96, 3.5, "key")
    with pytest.raises(ValueError, match="role must be"):
        PackedLayout(64, 2.0, "keys")
    with pytest.raises(ValueError, match="codes must be"):
        PackedLayout(64, 2.0, "key").pack(torch.zeros(15, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="tiles must be"):
        PackedLayout(64, 2.0, "key").unpack(torch.zeros(1, 255, dtype=torch.uint8))


@pytest.mark.parametrize("bits", RATES)
def test_reference_decodes_as_the_core(bits):
    from tqcore import _core

    codes = np.random.default_rng(0).integers(0, 256, (50, int(16 * bits)), dtype=np.uint8)
    rows = reference.decode_rows(torch.from_numpy(codes), 128, bits, chain_tables(bits, 2))
    np.testing.assert_allclose(rows.numpy(), _core.decode(chain_code(128, bits, 2), codes), atol=1e-6)


def test_reference_rotates_as_the_core():
    rotation = HadamardRotation(128, 7)
    signs = torch.from_numpy(rotation.signs[:, 0].copy())
    x = torch.randn(5, 128)
    rotated = reference.rotate(x, signs)
    np.testing.assert_allclose(rotated.numpy(), rotation.rotate(x.numpy()), atol=1e-5)
    assert torch.allclose(reference.rotate(rotated, signs, inverse=True), x, atol=1e-5)


def lane_nibbles(layout, tiles):
    """The string of nibbles of every lane, int [tiles, 32, n], as the kernel's loads put it together."""
    parts, start = [], 0
    for size in layout.pieces:
        parts.append(tiles[:, start : start + 32 * size].reshape(-1, 32, size))
        start += 32 * size
    data = torch.cat(parts, dim=2).numpy()
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:2], -1)


def closes(j, p, q):
    """First dimension that closes at nibble j or later."""
    return -(-j * q // p)


@pytest.mark.parametrize("code", ["chain", "mse"])
@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize("d", [64, 128, 256])
def test_lanes_rebuild_every_state(d, bits, code):
    """As in decode_tiles.cu: what a nibble gives to the dimensions it closes, and to those that the next one closes."""
    if code == "mse" and bits not in (2.0, 4.0):
        pytest.skip("mse at this rate is no nibble table")
    p, q = CHAIN_RATES[bits]
    generator = torch.Generator().manual_seed(0)
    for role in ("key", "value"):
        states = random_states(1, 1, 32, d, bits, role, generator, code)
        layout, tables = PackedLayout(d, bits, role), states.tables
        truth = reference.decode_rows(layout.unpack(states.codes)[0, 0], d, bits, tables.values()).numpy()
        strings = lane_nibbles(layout, states.codes[0, 0])
        entries = np.zeros((32, d), np.int64)
        for lane in range(32):
            g, t = divmod(lane, 4)
            if role == "key":
                chunk = d // 4
                periods = chunk // q
                fours = min(periods, 4)
                parts = [(2 * g + i, t) for i in (0, 1)]
                where = [
                    (part, j + p * (first + e))
                    for first in range(0, periods, fours)
                    for j in range(p)
                    for part in parts
                    for e in range(fours)
                ]
            else:
                sides = 1 if d == 64 else 2
                chunk = d // 8 // sides
                where = [
                    ((4 * t + e, g + 8 * side), j)
                    for j in range(chunk * p // q)
                    for side in range(sides)
                    for e in range(4)
                ]
            for index, ((token, part), j) in enumerate(where):
                nibble = strings[:, lane, index]
                for dim in range(closes(j, p, q), closes(j + 1, p, q)):
                    entries[token::16, (part * chunk + dim) % d] += tables.entries[dim % q, 0][nibble]
                for dim in range(closes(j + 1, p, q), closes(j + 2, p, q)):
                    entries[token::16, (part * chunk + dim) % d] += tables.entries[dim % q, 1][nibble]
        assert entries.max() < 256
        dims = np.arange(d) % q
        rebuilt = entries * tables.steps[dims] + tables.offsets.sum(axis=1)[dims]
        np.testing.assert_allclose(rebuilt, truth, atol=1e-5)


def test_reference_is_softmax_over_decoded_states():
    (q, keys, values, lengths), options = random_problem(
        2, 4, 2, 2, 64, [40, 17], bits=3.0, extra=5, mean=True, scaling=0.3
    )
    options["starts"] = torch.tensor([0, 4], dtype=torch.int32)
    options["extra_lengths"] = torch.tensor([5, 3], dtype=torch.int32)
    result = reference.decode_attention(q, keys, values, lengths, **options)
    decoded = []
    for states, role in ((keys, "key"), (values, "value")):
        rows = (
            reference.decode_rows(
                PackedLayout(64, 3.0, role).unpack(states.codes), 64, 3.0, states.tables.values()
            )
            * states.scales[..., None].float()
        )
        decoded.append(reference.rotate(rows, states.signs, inverse=True))
    k, v = decoded[0] + keys.mean[:, None], decoded[1]
    for row, (start, end, width) in enumerate([(0, 40, 5), (4, 17, 3)]):
        for head in range(4):
            for token in range(2):
                valid = width - 1 + token
                kk = torch.cat([k[row, head // 2, start:end], options["extra_k"][row, head // 2, :valid]])
                vv = torch.cat([v[row, head // 2, start:end], options["extra_v"][row, head // 2, :valid]])
                weights = torch.softmax(kk @ q[row, head, token] * 0.3, dim=0)
                assert torch.allclose(result[row, head, token], weights @ vv, atol=1e-5)


def test_kernel_wants_a_device():
    arguments, options = random_problem(1, 4, 2, 1, 64, [16], scaling=1 / math.sqrt(64))
    with pytest.raises(ValueError, match="on a CUDA device"):
        decode_attention(*arguments, **options)
