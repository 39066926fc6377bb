"""Plans: where a code spends its bits, and the linear map that brings vectors there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tqcore import _core
from tqcore.chain import chain_code, chain_mse
from tqcore.config import CHAIN_RATES, ChainLayout
from tqcore.rotation import HadamardRotation

__all__ = ["Plan", "Segment"]

_SEGMENT_STREAM = 16  # seed streams from here on rotate the segments


@dataclass(frozen=True)
class Segment:
    """Consecutive dimensions of a plan that share a rate.

    Parameters
    ----------
    dims : int
        Dimensions.
    bits : float
        Rate, one of `tqcore.config.CHAIN_RATES`.
    gain : float
        Deviation of the segment's coordinates, taken out before coding.
    """

    dims: int
    bits: float
    gain: float


@dataclass(frozen=True, eq=False)
class Plan:
    """A calibrated code: the mean comes off, a linear map sorts the dimensions, each segment has its own rate.

    With A = `forward` and B = `backward`, <q, x - mean> is the inner product of q B and (x - mean) A over the kept
    dimensions, and the code's error is measured in the second. Where `forward` is None there is one segment, and the
    map is the random rotation of the seed: a plan that only centres.

    Parameters
    ----------
    mean : ndarray
        float32 [d].
    segments : tuple of Segment
        In order of the mapped dimensions; D is their sum, at most d.
    seed : int
        Seed of the random rotations inside the segments.
    memory : int
        Memory of the segments' chain codes.
    forward : ndarray, optional
        float32 [d, D].
    backward : ndarray, optional
        float32 [d, D]; by default the columns of `forward` over their squared lengths, which is right when
        they are orthogonal.
    """

    mean: np.ndarray
    segments: tuple[Segment, ...]
    seed: int
    memory: int
    forward: np.ndarray | None = None
    backward: np.ndarray | None = None

    @property
    def d(self) -> int:
        """Dimensions of the vectors."""
        return len(self.mean)

    @property
    def dims(self) -> int:
        """Dimensions that are coded."""
        return sum(s.dims for s in self.segments)

    @property
    def code_size(self) -> int:
        """Bytes of a packed code."""
        return sum(ChainLayout(s.dims, s.bits).code_size for s in self.segments)

    @property
    def centres_only(self) -> bool:
        """Whether the plan is the oblivious code of centred vectors."""
        return self.forward is None

    @property
    def nbytes(self) -> int:
        """Bytes that the plan takes in a file."""
        return sum(a.nbytes for a in self.arrays().values())

    @cached_property
    def gains(self) -> np.ndarray:
        """float64 [number of segments]."""
        return np.array([s.gain for s in self.segments])

    @cached_property
    def encode_matrix(self) -> np.ndarray:
        """float32 [d, D]: centred vectors to coordinates of deviation 1, rotated inside each segment."""
        return self._rotated(self._forward, 1.0 / self.gains)

    @cached_property
    def query_matrix(self) -> np.ndarray:
        """float32 [d, D]: queries to what is multiplied with reconstructed coordinates."""
        return self._rotated(self._backward, self.gains)

    @property
    def _forward(self) -> np.ndarray:
        if self.forward is None:
            raise ValueError("a plan that only centres has no matrix")
        return self.forward

    @property
    def _backward(self) -> np.ndarray:
        if self.backward is not None:
            return self.backward
        return self._forward / np.einsum("ij,ij->j", self._forward, self._forward)

    def _rotated(self, matrix: np.ndarray, factors: np.ndarray) -> np.ndarray:
        out = np.empty(matrix.shape, np.float32)
        first = 0
        for i, (segment, factor) in enumerate(zip(self.segments, factors, strict=True)):
            part = slice(first, first + segment.dims)
            rotation = HadamardRotation(segment.dims, self.seed, _SEGMENT_STREAM + i)
            out[:, part] = rotation.rotate((matrix[:, part] * factor).astype(np.float32))
            first += segment.dims
        return out

    def core(self) -> _core.Code:
        """The compiled code: the segments' chains side by side."""
        return _core.join_codes([chain_code(s.dims, s.bits, self.memory) for s in self.segments])

    @cached_property
    def noise(self) -> np.ndarray:
        """Squared error in the original space that each segment adds at unit scale, float64 [segments]."""
        lengths = np.einsum("ij,ij->j", self._backward, self._backward, dtype=np.float64)
        return (
            self._per_segment(lengths)
            * self.gains**2
            * [chain_mse(s.bits, self.memory) for s in self.segments]
        )

    def _per_segment(self, columns: np.ndarray) -> np.ndarray:
        starts = np.cumsum([0] + [s.dims for s in self.segments[:-1]])
        return np.add.reduceat(columns, starts)

    def expected_error(self, centred: np.ndarray) -> float:
        """Mean squared error to expect from coding vectors.

        Parameters
        ----------
        centred : ndarray
            float32 [n, d], the mean taken off.
        """
        z = _core.project(np.ascontiguousarray(centred), self.encode_matrix)
        energy = float(np.einsum("ij,ij->", centred, centred, dtype=np.float64)) / len(centred)
        squares = np.einsum("ij,ij->j", z, z, dtype=np.float64) / len(centred)
        lengths = np.einsum("ij,ij->j", self._backward, self._backward, dtype=np.float64)
        mean_length = self._per_segment(lengths) / [s.dims for s in self.segments]
        kept = float((self._per_segment(squares) * self.gains**2 * mean_length).sum())
        # A vector is stretched to unit deviation before coding, so the noise grows with its length.
        return float(squares.sum()) / self.dims * float(self.noise.sum()) + max(0.0, energy - kept)

    def describe(self) -> dict[str, Any]:
        """JSON-able part of the plan; `arrays` is the rest."""
        return {
            "segments": [[s.dims, s.bits, s.gain] for s in self.segments],
            "forward": self.forward is not None,
            "backward": self.backward is not None,
        }

    @classmethod
    def from_description(
        cls, plan: dict[str, Any], seed: int, memory: int, arrays: dict[str, np.ndarray]
    ) -> Plan:
        """The plan of a `describe()` and `arrays`."""
        return cls(segments=tuple(Segment(*s) for s in plan["segments"]), seed=seed, memory=memory, **arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the plan, float32, by name and in the order in which files hold them."""
        named = {"mean": self.mean, "forward": self.forward, "backward": self.backward}
        return {name: array for name, array in named.items() if array is not None}

    @staticmethod
    def shapes(d: int, description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays that belong to a `describe()`, checked.

        Raises
        ------
        ValueError
            If the description is not one that `describe` could return for `d`.
        """
        if not isinstance(description, dict) or description.keys() != {"segments", "forward", "backward"}:
            raise ValueError("plan must have segments, forward and backward")
        segments = description["segments"]
        if not isinstance(segments, list) or not 1 <= len(segments) <= d:
            raise ValueError(f"plan.segments must be a list of 1 to {d} segments")
        for s in segments:
            if (
                not isinstance(s, list)
                or len(s) != 3
                or type(s[0]) is not int
                or s[0] < 8
                or s[1] not in CHAIN_RATES
            ):
                raise ValueError(f"plan.segments must hold [dims >= 8, rate, gain], got {s!r}")
            if type(s[2]) is not float or not 0 < s[2] < np.inf:
                raise ValueError(f"plan.segments must have positive gains, got {s[2]!r}")
        dims = sum(s[0] for s in segments)
        if dims > d or (not description["forward"] and (dims != d or len(segments) != 1)):
            raise ValueError(f"plan.segments must cover at most {d} dimensions, all of them without a matrix")
        for name in ("forward", "backward"):
            if type(description[name]) is not bool:
                raise ValueError(f"plan.{name} must be true or false")
        if description["backward"] and not description["forward"]:
            raise ValueError("plan.backward needs plan.forward")
        named = {"mean": (d,), "forward": (d, dims), "backward": (d, dims)}
        return {name: shape for name, shape in named.items() if name == "mean" or description[name]}

    def __repr__(self) -> str:
        if self.centres_only:
            return f"Plan(centred, {self.segments[0].bits:g} bits)"
        parts = ", ".join(f"{s.dims} x {s.bits:g}" for s in self.segments)
        return f"Plan({self.d} -> {self.dims} dimensions: {parts} bits)"
