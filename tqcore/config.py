"""Names, limits and layout arithmetic of the codes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BLOCK_ROWS",
    "CHAIN_RATES",
    "CODES",
    "LAYERED_BITS",
    "MAX_D",
    "MIN_D",
    "ChainLayout",
    "chain_layout",
    "chain_segments",
    "layer_bits",
]

MIN_D = 8
MAX_D = 1 << 16
BLOCK_ROWS = 16
CODES = ("chain", "layered", "mse", "prod")

# bits per dimension -> P nibbles per Q dimensions
CHAIN_RATES: dict[float, tuple[int, int]] = {
    0.5: (1, 8),
    1.0: (1, 4),
    1.5: (3, 8),
    2.0: (1, 2),
    2.5: (5, 8),
    3.0: (3, 4),
    3.5: (7, 8),
    4.0: (1, 1),
    5.0: (5, 4),
    6.0: (3, 2),
    8.0: (2, 1),
}
LAYERED_BITS = (3.0, 8.0)  # least and most of a layered code


def chain_layout(d: int, p: int, q: int) -> int:
    """Nibbles of a chain over ``d`` dimensions at ``p`` nibbles per ``q`` dimensions."""
    return (d - 1) * p // q + 1 if p <= q else -(-d * p // q)


@dataclass(frozen=True)
class ChainLayout:
    """Where the nibbles of a chain code lie.

    Parameters
    ----------
    d : int
        Dimensions.
    bits : float
        A rate of `CHAIN_RATES`.
    """

    d: int
    bits: float

    @property
    def n_nibbles(self) -> int:
        """Nibbles a row: ``floor((d - 1) P / Q) + 1`` up to 4 bits, ``ceil(d P / Q)`` above."""
        return chain_layout(self.d, *CHAIN_RATES[self.bits])

    @property
    def code_size(self) -> int:
        """Bytes a row; an odd last nibble leaves half a byte zero."""
        return (self.n_nibbles + 1) // 2

    @property
    def words(self) -> int:
        """32-bit words a row in the blocked layout, zero padded."""
        return (self.code_size + 3) // 4


def chain_segments(d: int, bits: float) -> tuple[tuple[int, float], ...]:
    """Dimensions and rates of the chains that code `d` dimensions at `bits`, a rate or any number between two.

    Between two rates the first dimensions have the upper one, as many (a multiple of 8) as ``floor(d * bits / 8)``
    bytes hold.
    """
    if bits in CHAIN_RATES:
        return ((d, bits),)
    low, high = max(r for r in CHAIN_RATES if r < bits), min(r for r in CHAIN_RATES if r > bits)
    limit = int(d * bits // 8)
    upper = min(d - 8, int((8 * limit - low * d) / (high - low)) + 16) // 8 * 8
    while upper >= 8:
        segments = ((upper, high), (d - upper, low))
        if sum(ChainLayout(*s).code_size for s in segments) <= limit:
            return segments
        upper -= 8
    return ((d, low),)


def layer_bits(bits: float) -> tuple[float, float]:
    """Bits of the first chain of a layered code, 1.5 or 2, and of the second."""
    coarse = 1.5 if bits <= 3.5 else 2.0
    fine = bits - coarse
    return coarse, fine if fine in CHAIN_RATES else fine + 1e-9  # rounding must not cost a byte
