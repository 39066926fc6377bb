"""TurboQuantIndex under test."""

from __future__ import annotations

from typing import Any

import numpy as np

from tqann import TurboQuantIndex

from ..errors import Unavailable

__all__ = ["OurIndex"]

_UNIT = 1e-3  # of a length, past which it is not 1; float16 embeddings are within it


class OurIndex:
    """Our index; ids are positions until a caller names them. Only a calibrated plan uses `train`.

    With `first_bits`, a code of that rate finds candidates, and one of `bits` beside it orders them. Codes without a
    scale take vectors of length 1, whose inner products the cosine metric orders.
    """

    threads_can_change = True

    def __init__(
        self, d: int, bits: float, metric: str, first_bits: float | None = None, **options: Any
    ) -> None:
        if first_bits is not None:
            bits, options["refine_bits"] = first_bits, bits
        self.planned = options.get("plan") == "calibrated"
        self.unit = options.get("scale") == "none"
        if self.unit and metric == "ip":
            metric = "cosine"
        try:
            self.index = TurboQuantIndex(d, bits, metric, **options)
        except ValueError as error:
            raise Unavailable(str(error)) from error

    def train(self, x: np.ndarray) -> None:
        """Mean and second moments for a plan; nothing otherwise."""
        if self.planned:
            self.index.calibrate(x)

    def add(self, x: np.ndarray) -> None:
        """Append vectors."""
        if self.unit and abs(np.linalg.norm(x, axis=1) - 1).max() > _UNIT:
            raise Unavailable("needs vectors of length 1")
        self.index.add(x)

    def search(self, q: np.ndarray, k: int) -> np.ndarray:
        """Ids [nq, k]."""
        return self.index.search(q, k)[1]

    def set_threads(self, n: int) -> None:
        """Threads of encoding and searching."""
        self.index.threads = n

    def bytes_per_vector(self, n: int) -> float:  # noqa: ARG002
        """Code and scalars; running ids are not stored."""
        return float(self.index.sa_code_size())
