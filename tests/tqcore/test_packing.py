"""The blocked layout: its shape, and rows out of it by slice and by position."""

import numpy as np
import pytest

from tqcore import _core
from tqcore.packing import blocks_for, move_rows, pack_rows, put_rows, unpack_rows
from tqcore.reference import packing as reference


@pytest.fixture(params=_core.simd_levels(), autouse=True)
def level(request):
    before = _core.simd_level()
    assert _core.set_simd(request.param)
    yield
    _core.set_simd(before)


@pytest.mark.parametrize(
    ("n", "code_size", "shape"),
    [
        (0, 5, (0, 2, 16)),
        (1, 1, (1, 1, 16)),
        (16, 4, (1, 1, 16)),
        (17, 48, (2, 12, 16)),
        (33, 13, (3, 4, 16)),
    ],
)
def test_shape(n, code_size, shape):
    assert blocks_for(n, code_size) == reference.blocks_for(n, code_size) == shape


def test_rows_come_out_as_they_went_in():
    codes = np.random.default_rng(0).integers(0, 256, (40, 13), dtype=np.uint8)
    blocks = np.zeros(blocks_for(40, 13), np.uint32)
    pack_rows(blocks, 0, codes[:18])
    pack_rows(blocks, 18, codes[18:])
    for rows in (slice(None, 40), slice(5, 33), np.array([39, 0, 17])):
        np.testing.assert_array_equal(unpack_rows(blocks, rows, 13), codes[rows])


@pytest.mark.parametrize("code_size", [16, 31, 33, 50])
def test_blocks_are_those_of_the_reference(code_size):
    codes = np.random.default_rng(4).integers(0, 256, (40, code_size), dtype=np.uint8)
    blocks, expected = np.full((2, *blocks_for(40, code_size)), 255, np.uint32)
    pack_rows(blocks, 0, codes)
    expected[:] = 0
    reference.pack_rows(expected, 0, codes, _core.by_place())
    np.testing.assert_array_equal(unpack_rows(blocks, slice(0, 40), code_size), codes)
    np.testing.assert_array_equal(blocks[:2], expected[:2])


def test_rows_are_replaced():
    first, second = np.random.default_rng(1).integers(0, 256, (2, 40, 7), dtype=np.uint8)
    blocks, expected = np.zeros((2, *blocks_for(43, 7)), np.uint32)
    for rows in (first, second):
        pack_rows(blocks, 3, rows)
        reference.pack_rows(expected, 3, rows, _core.by_place())
    np.testing.assert_array_equal(blocks, expected)
    np.testing.assert_array_equal(
        reference.unpack_rows(expected, slice(6, 22), 7, _core.by_place()), second[3:19]
    )


def test_rows_are_put_one_by_one():
    codes = np.random.default_rng(3).integers(0, 256, (40, 13), dtype=np.uint8)
    blocks = np.zeros(blocks_for(40, 13), np.uint32)
    pack_rows(blocks, 0, codes)
    positions = np.array([39, 0, 17])
    put_rows(blocks, positions, codes[:3])
    codes[positions] = codes[:3].copy()
    np.testing.assert_array_equal(unpack_rows(blocks, slice(0, 40), 13), codes)
    for wrong in ([-1, 0, 1], [0, 1, 48], [0, 1]):
        with pytest.raises(ValueError, match="positions"):
            put_rows(blocks, np.array(wrong), codes[:3])


def test_rows_are_packed_with_their_scalars():
    codes = np.random.default_rng(4).integers(0, 256, (20, 13), dtype=np.uint8)
    scalars = np.arange(40, dtype=np.float32).reshape(20, 2)
    blocks, columns = np.zeros(blocks_for(40, 13), np.uint32), np.zeros((2, 40), np.float32)
    pack_rows(blocks, 5, codes, columns, scalars)
    np.testing.assert_array_equal(unpack_rows(blocks, slice(5, 25), 13), codes)
    np.testing.assert_array_equal(columns[:, 5:25], scalars.T)
    assert not columns[:, :5].any()
    assert not columns[:, 25:].any()
    for wrong in (
        (columns, None),
        (columns, scalars[1:]),
        (columns[:1].copy(), scalars),
        (columns[:, :24].copy(), scalars),
    ):
        with pytest.raises(ValueError, match="scalars"):
            pack_rows(blocks, 5, codes, *wrong)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_bits_of_rows(n):
    for rows in ([], [0], [n - 1, 0, n - 1], [-1, n, 2**62, -(2**63)], np.arange(-3, n + 3)):
        allowed = np.isin(np.arange(n), rows)
        np.testing.assert_array_equal(
            _core.bits_of(np.array(rows, np.int64), n), np.packbits(allowed, bitorder="little")
        )
    with pytest.raises(ValueError, match="n"):
        _core.bits_of(np.array([0]), -1)


def test_rows_move_with_their_scalars():
    codes = np.random.default_rng(2).integers(0, 256, (40, 13), dtype=np.uint8)
    blocks, scalars = np.zeros(blocks_for(40, 13), np.uint32), np.arange(80, dtype=np.float32).reshape(2, 40)
    pack_rows(blocks, 0, codes)
    rows, to = np.array([39, 16, 31]), np.array([0, 3, 17])
    move_rows(blocks, scalars, rows, to)
    codes[to] = codes[rows]
    np.testing.assert_array_equal(unpack_rows(blocks, slice(0, 40), 13), codes)
    np.testing.assert_array_equal(scalars[:, to], [[39, 16, 31], [79, 56, 71]])
    for wrong in ([-1, 0, 1], [0, 1, 40], [0, 1]):
        with pytest.raises(ValueError, match="rows"):
            move_rows(blocks, scalars, rows, np.array(wrong))


def test_moves_of_a_removal_are_of_increasing_rows():
    for wrong in ([3, 3], [4, 2], [-1], [10]):
        with pytest.raises(ValueError, match="positions"):
            _core.removal_moves(10, np.array(wrong))


def test_a_map_of_ids_follows_a_removal():
    ids, positions = np.array([0, 7, 2, 9, 4]), _core.Int64Map()
    positions.set(np.array([7, 9]), np.array([1, 3]))
    gone, holes, movers = np.array([0, 3]), np.array([0]), np.array([4])
    for wrong in (
        (gone, holes, movers[:0]),
        (gone + 2, holes, movers),
        (gone, holes - 1, movers),
        (gone, holes, movers + 1),
    ):
        with pytest.raises(ValueError, match=r"holes|positions"):
            positions.remove(ids, *wrong)
    positions.remove(ids, gone, holes, movers)
    np.testing.assert_array_equal(ids[:3], [4, 7, 2])
    np.testing.assert_array_equal(positions.find(ids[:3], np.array([4, 7, 2, 0, 9])), [0, 1, 2, -1, -1])
    assert len(positions) == 2
