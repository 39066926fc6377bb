"""When an index calibrates itself, and whether what it is given later still fits its plan."""

from __future__ import annotations

import warnings

import numpy as np

from tqcore.calibration import calibrate
from tqcore.chain import mixed_mse
from tqcore.quantizer import Quantizer

__all__ = ["PLANS", "DriftWarning", "Planner", "auto_rows"]

PLANS = ("oblivious", "calibrated", "auto")
_MEASURED_SHARE = 16  # one vector in so many is looked at for drift
_LEAST_MEASURED = 16  # vectors of one batch that may carry a warning
_MOST_SAMPLED = 1 << 16
_TOLERATED = 1.1  # error over the oblivious code's that still goes without a warning: a twentieth of a bit


class DriftWarning(UserWarning):
    """Vectors are being added that the plan of the index does not fit."""


def auto_rows(d: int) -> int:
    """Vectors that a first batch must have for plan="auto" to calibrate on it: d / 2, and at least 200.

    Shrinkage keeps small samples from doing harm; from d / 2 on they bring a third to four fifths of the gain of a
    large one (CONTRIBUTING.md), and the plan cannot be changed later.
    """
    return max(200, d // 2)


class Planner:
    """Decides the plan of an index before its first vector, and watches it afterwards.

    Parameters
    ----------
    mode : str
        One of `PLANS`.
    error, baseline : float
        Sums over the vectors looked at: squared error to expect from the plan, and from the oblivious code.
    """

    def __init__(self, mode: str, error: float = 0.0, baseline: float = 0.0) -> None:
        self.mode = mode
        self.error, self.baseline = error, baseline
        self._seen = 0
        self._warned = False

    @property
    def drift(self) -> float:
        """Expected squared error on what was added since calibration over the oblivious code's; NaN for none."""
        return self.error / self.baseline if self.baseline > 0 else float("nan")

    def copy(self) -> Planner:
        """Return an independent planner."""
        return Planner(self.mode, self.error, self.baseline)

    def calibrated(self, quantizer: Quantizer, sample: np.ndarray, queries: np.ndarray | None) -> Quantizer:
        """Return `quantizer` with a plan from `sample` float32 [n, d] and, if given, `queries` float32 [m, d]."""
        sample = _spread(quantizer.normalized(sample), _MOST_SAMPLED)
        if queries is not None:
            queries = _spread(quantizer.normalized(queries), _MOST_SAMPLED)
        plan = calibrate(
            sample,
            quantizer.bits,
            memory=quantizer.memory,
            seed=quantizer.seed,
            queries=queries,
            centre_queries=quantizer.store_norm,
        )
        return quantizer.with_plan(plan)

    def due(self, quantizer: Quantizer, vectors: np.ndarray, empty: bool) -> bool:
        """Whether it is time to calibrate, on `vectors` float32 [n, d], before they are added."""
        if self.mode == "oblivious" or quantizer.plan is not None or not empty or not len(vectors):
            return False
        if self.mode == "auto" and len(vectors) < auto_rows(quantizer.d):
            return False
        if len(vectors) < 2:
            raise ValueError(
                "x must have at least 2 vectors to calibrate on, or call calibrate() before; got 1"
            )
        return True

    def observe(self, quantizer: Quantizer, vectors: np.ndarray) -> None:
        """Look at one added vector in 16 and warn once when the plan does harm."""
        plan = quantizer.plan
        if plan is None:
            return
        first = -self._seen % _MEASURED_SHARE
        self._seen += len(vectors)
        looked_at = vectors[first::_MEASURED_SHARE]
        if not len(looked_at):
            return
        vectors = quantizer.normalized(looked_at)
        centred = vectors - plan.mean
        oblivious = mixed_mse(quantizer.d, quantizer.bits, quantizer.memory)
        baseline = oblivious * float(np.einsum("ij,ij->", vectors, vectors, dtype=np.float64))
        if plan.centres_only:
            error = oblivious * float(np.einsum("ij,ij->", centred, centred, dtype=np.float64))
        else:
            error = plan.expected_error(centred) * len(centred)
        self.error += error
        self.baseline += baseline
        if not self._warned and len(vectors) >= _LEAST_MEASURED and error > _TOLERATED * baseline:
            self._warned = True
            warnings.warn(
                f"vectors now added do not fit the plan of this index: their expected error is {error / baseline:.2f} "
                "times that of an oblivious code (see index.drift); consider an index calibrated on a newer sample",
                DriftWarning,
                stacklevel=4,
            )


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` rows, evenly spread."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
