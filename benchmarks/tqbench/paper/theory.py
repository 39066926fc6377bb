"""What theory predicts, what the paper prints and what the review saw."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["BITS", "LLOYD_MAX", "PAPER_DISTORTION", "PAPER_PRODUCT", "bound", "shannon", "slope"]

BITS = (1, 2, 3, 4)
# Large-d distortion of the Lloyd-Max code of a unit vector; b = 0 is the vector itself.
LLOYD_MAX = {0: 1.0, 1: 0.3634, 2: 0.1175, 3: 0.03455, 4: 0.00950}
PAPER_DISTORTION = {1: "0.36", 2: "0.117", 3: "0.03", 4: "0.009"}  # Theorem 1
PAPER_PRODUCT = {1: "1.57", 2: "0.56", 3: "0.18", 4: "0.047"}  # Theorem 2, times d


def bound(bits: float) -> float:
    """The paper's upper bound of the distortion, sqrt(3) pi / 2 * 4**-b (Theorem 1)."""
    return math.sqrt(3) * math.pi / 2 * 4.0**-bits


def shannon(bits: float) -> float:
    """Distortion below which no code of b bits a dimension comes, 4**-b (Theorem 3)."""
    return 4.0**-bits


def slope(values: Sequence[float], bits: Sequence[float] = BITS) -> float:
    """Least-squares slope of log2 of values over bits: -2 where every bit divides them by four."""
    centre = sum(bits) / len(bits)
    spread = sum((b - centre) ** 2 for b in bits)
    return sum((b - centre) * math.log2(v) for b, v in zip(bits, values, strict=True)) / spread
