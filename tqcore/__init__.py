"""Vectors to codes, and scores against codes: rotations, chain and scalar codes, packed layout, exact search."""

from tqcore._core import simd_level
from tqcore.quantizer import Quantizer

__all__ = ["Quantizer", "simd_level"]
