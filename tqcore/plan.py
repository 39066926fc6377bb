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
    """

    dims: int
    bits: float


@dataclass(frozen=True, eq=False)
class Plan:
    """A calibrated code: the mean comes off, a linear map sorts the dimensions, each segment has its own rate.

    With A = `forward` and B = `backward`, <q, x - mean> is the inner product of q B and (x - mean) A over the kept
    dimensions, and the code's error is measured in the second. Each mapped coordinate is divided by its deviation
    before it is rotated with its segment and coded, so that one strong direction does not set the length of all.
    Where `forward` is None the segments are those of the oblivious code, and the map is the random rotation of the
    seed: a plan that only centres.

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
    deviations : ndarray, optional
        float32 [D], positive; with `forward`.
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
    deviations: np.ndarray | None = None
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
    def encode_matrix(self) -> np.ndarray:
        """float32 [d, D]: centred vectors to coordinates of deviation 1, not yet rotated inside the segments."""
        return np.ascontiguousarray(self._forward / self._deviations, dtype=np.float32)

    @cached_property
    def query_matrix(self) -> np.ndarray:
        """float32 [d, D]: queries to what is multiplied with reconstructed coordinates."""
        return self.rotate(self._backward * self._deviations)

    @property
    def _forward(self) -> np.ndarray:
        if self.forward is None:
            raise ValueError("a plan that only centres has no matrix")
        return self.forward

    @property
    def _deviations(self) -> np.ndarray:
        if self.deviations is None:
            raise ValueError("a plan that only centres has no deviations")
        return self.deviations

    @property
    def _backward(self) -> np.ndarray:
        if self.backward is not None:
            return self.backward
        return self._forward / np.einsum("ij,ij->j", self._forward, self._forward)

    def rotate(self, z: np.ndarray, threads: int = 0) -> np.ndarray:
        """Rows float32 [n, D], a new array, with every segment rotated at random."""
        out = np.empty(z.shape, np.float32)
        for i, part in enumerate(self.parts):
            out[:, part] = self._rotation(i, threads).rotate(z[:, part])
        return out

    def unrotate(self, y: np.ndarray, threads: int = 0) -> np.ndarray:
        """Inverse of `rotate`."""
        out = np.empty(y.shape, np.float32)
        for i, part in enumerate(self.parts):
            out[:, part] = self._rotation(i, threads).unrotate(y[:, part])
        return out

    def weighted(self, z: np.ndarray) -> np.ndarray:
        """Rows float32 [n, D] times the deviations, unrotated: coordinates whose plain error is the plan's."""
        return z * self._deviations

    def _rotation(self, segment: int, threads: int) -> HadamardRotation:
        return HadamardRotation(self.segments[segment].dims, self.seed, _SEGMENT_STREAM + segment, threads)

    @cached_property
    def parts(self) -> tuple[slice, ...]:
        """The mapped dimensions of each segment."""
        ends = np.cumsum([s.dims for s in self.segments]).tolist()
        return tuple(slice(end - s.dims, end) for end, s in zip(ends, self.segments, strict=True))

    def core(self) -> _core.Code:
        """The compiled code: the segments' chains side by side."""
        return _core.join_codes([chain_code(s.dims, s.bits, self.memory) for s in self.segments])

    @cached_property
    def noise(self) -> np.ndarray:
        """Squared error in the original space that each segment adds to a vector of deviation 1, float64 [segments]."""
        lengths = np.einsum("ij,ij->j", self._backward, self._backward, dtype=np.float64)
        lengths *= np.square(self._deviations, dtype=np.float64)
        return np.array([lengths[part].sum() for part in self.parts]) * [
            chain_mse(s.bits, self.memory) for s in self.segments
        ]

    def expected_error(self, centred: np.ndarray) -> float:
        """Mean squared error to expect from coding vectors.

        Parameters
        ----------
        centred : ndarray
            float32 [n, d], the mean taken off.
        """
        z = _core.project(np.ascontiguousarray(centred), self.encode_matrix)
        squares = float(np.einsum("ij,ij->", z, z, dtype=np.float64)) / len(centred)
        left_out = centred - self.weighted(z) @ self._backward.T
        dropped = float(np.einsum("ij,ij->", left_out, left_out, dtype=np.float64)) / len(centred)
        # A vector is stretched to unit deviation before coding, so the noise grows with its length.
        return squares / self.dims * float(self.noise.sum()) + dropped

    def describe(self) -> dict[str, Any]:
        """JSON-able part of the plan; `arrays` is the rest."""
        return {
            "segments": [[s.dims, s.bits] for s in self.segments],
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
        named = {
            "mean": self.mean,
            "deviations": self.deviations,
            "forward": self.forward,
            "backward": self.backward,
        }
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
                or len(s) != 2
                or type(s[0]) is not int
                or s[0] < 8
                or type(s[1]) not in (int, float)
                or s[1] not in CHAIN_RATES
            ):
                raise ValueError(f"plan.segments must hold [dims >= 8, rate], got {s!r}")
        dims = sum(s[0] for s in segments)
        rates = [s[1] for s in segments]
        # Without a matrix it is an oblivious code, of one rate or of two neighbours, the upper one first.
        oblivious = dims == d and (
            len(rates) == 1 or rates[1:] == [max((r for r in CHAIN_RATES if r < rates[0]), default=0)]
        )
        if dims > d or (not description["forward"] and not oblivious):
            raise ValueError(f"plan.segments must cover at most {d} dimensions, all of them without a matrix")
        for name in ("forward", "backward"):
            if type(description[name]) is not bool:
                raise ValueError(f"plan.{name} must be true or false")
        if description["backward"] and not description["forward"]:
            raise ValueError("plan.backward needs plan.forward")
        named: dict[str, tuple[int, ...]] = {"mean": (d,)}
        if description["forward"]:
            named |= {"deviations": (dims,), "forward": (d, dims)}
        if description["backward"]:
            named["backward"] = (d, dims)
        return named

    def __repr__(self) -> str:
        if self.centres_only:
            return f"Plan(centred, {', '.join(f'{s.bits:g}' for s in self.segments)} bits)"
        parts = ", ".join(f"{s.dims} x {s.bits:g}" for s in self.segments)
        return f"Plan({self.d} -> {self.dims} dimensions: {parts} bits)"
