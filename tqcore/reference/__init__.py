"""Plain NumPy versions of what the native core computes, under the same names: the ground truth of the tests.

Sums that the product rounds in float32 are rounded in float32 here, in the same order, so that codes and
scalars agree bit for bit; everything else is float64 or int64.
"""

from tqcore.reference import chain, layers, mse, packing, prod, rotation, scan
from tqcore.reference.quantizer import Quantizer

__all__ = ["Quantizer", "chain", "layers", "mse", "packing", "prod", "rotation", "scan"]
