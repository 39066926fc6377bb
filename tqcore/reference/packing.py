"""Bit streams, nibbles and the blocked layout, one bit or byte at a time."""

import numpy as np

__all__ = [
    "blocks_for",
    "pack_bits",
    "pack_nibbles",
    "pack_rows",
    "unpack_bits",
    "unpack_nibbles",
    "unpack_rows",
]

_BLOCK = 16


def pack_bits(values, bits):
    """Little-endian bit stream of values below 2**bits, uint8 [n, ceil(d * bits / 8)], from [n, d]."""
    n, d = values.shape
    stream = np.zeros((n, -(-d * bits // 8) * 8), dtype=np.uint8)
    for b in range(bits):
        stream[:, b : d * bits : bits] = (values >> b) & 1
    return np.packbits(stream, axis=1, bitorder="little")


def unpack_bits(codes, d, bits):
    """Values int64 [n, d] of the bit stream uint8 [n, ceil(d * bits / 8)]."""
    stream = np.unpackbits(codes, axis=1, bitorder="little")
    values = np.zeros((len(codes), d), dtype=np.int64)
    for b in range(bits):
        values |= stream[:, b : d * bits : bits].astype(np.int64) << b
    return values


def pack_nibbles(nibbles):
    """Two nibbles a byte, the even one in the low half, uint8 [n, ceil(J / 2)], from [n, J]."""
    return pack_bits(nibbles, 4)


def unpack_nibbles(codes, count):
    """Nibbles int64 [n, count] of uint8 [n, ceil(count / 2)]."""
    return unpack_bits(codes, count, 4)


def blocks_for(n, code_size):
    """Shape (blocks, words, 16) of the blocked layout of `n` rows."""
    return -(-n // _BLOCK), -(-code_size // 4), _BLOCK


def _bytes(blocks, i, byte, by_place):
    """The line of `blocks` as bytes, and the place there of a byte of row `i`."""
    line = blocks[i // _BLOCK, byte // 4].view(np.uint8)
    place, lane = byte % 4, i % _BLOCK
    return line, _BLOCK * place + lane if by_place else 4 * lane + place


def pack_rows(blocks, start, codes, by_place=False):
    """Write rows uint8 [m, code_size] into uint32 `blocks` at positions from `start` on, in place."""
    for i, row in enumerate(codes, start):
        for byte, value in enumerate(row):
            line, at = _bytes(blocks, i, byte, by_place)
            line[at] = value


def unpack_rows(blocks, positions, code_size, by_place=False):
    """Rows uint8 [m, code_size] at `positions` (int [m], or a slice with bounds) of uint32 `blocks`."""
    if isinstance(positions, slice):
        positions = range(positions.start, positions.stop)
    rows = np.zeros((len(positions), code_size), dtype=np.uint8)
    for k, i in enumerate(positions):
        for byte in range(code_size):
            line, at = _bytes(blocks, i, byte, by_place)
            rows[k, byte] = line[at]
    return rows
