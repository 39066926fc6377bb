"""Vectors to codes and back: rotation, code and per-vector scalars as one object."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tqcore import _core
from tqcore.chain import mixed_code, nibble_tables, tables_fingerprint
from tqcore.codebook import lloyd_max
from tqcore.config import CHAIN_RATES, CODES, LAYERED_BITS, MAX_D, MIN_D, chain_segments, layer_bits
from tqcore.layers import Layers
from tqcore.plan import Plan
from tqcore.prod import Prod
from tqcore.rotation import HaarRotation, HadamardRotation

__all__ = ["Quantizer"]

_OF_CHAINS = ("chain", "layered")
_CHUNK_BYTES = 12 << 20  # of rows encoded at a time, so that scratch memory stays small and in cache


class Quantizer:
    """An online vector quantizer: without a plan, nothing in it depends on data.

    A vector's norm is taken off, a fixed random rotation makes its coordinates N(0, 1/d), the code quantizes them,
    and one float per vector makes inner products unbiased.

    Parameters
    ----------
    d : int
        Dimensions, 8 to 65,536.
    bits : float
        Bits per dimension without scalars: any number from 0.5 to 8 for "chain" (between two rates of
        `tqcore.config.CHAIN_RATES` some dimensions have the upper and some the lower one) and from 3 to 8 for
        "layered", an integer from 1 to 8 for "mse" and "prod".
    code : str
        "chain" (a tail-biting chain of nibbles), "layered" (a coarse chain and one of its error, which is searched in
        two steps; `tqcore.layers`), "mse" (TurboQuant, arXiv 2504.19874, Algorithm 1: Lloyd-Max per
        coordinate) or "prod" (Algorithm 2: one bit of every coordinate goes to a QJL sketch of the error).
    memory : int
        Nibbles a coordinate of a chain depends on: 2, or 3 for less distortion and slower encoding.
    rotation : str
        "hadamard" or "haar".
    seed : int
        Seed of the rotation and the sketch.
    scale : str, optional
        "unbiased" (arXiv 2105.08339, 2405.12497: ``|x|^2 / <x_hat, x>``), "norm" (the paper's) or "none": that of
        length 1 for all, which takes no bytes. "none" needs `normalize`, and codes "chain" or "mse". Not for "prod".
    sketch : str
        "orthogonal" or "gaussian", for "prod".
    store_norm : bool
        Keep ``|x|^2`` beside the scale, which l2 distances need.
    normalize : bool
        Take every vector at length 1, for the cosine metric.
    plan : Plan, optional
        Mean, linear map and rates from `tqcore.calibration.calibrate`; for "chain" with the Hadamard rotation.

    Attributes
    ----------
    code_size : int
        Bytes of a packed code, scalars not included.
    n_scalars : int
        float32 scalars a vector.
    core : tqcore._core.Code
        The compiled code.
    layers : Layers or None
        Of a "layered" code.
    same_scale : float or None
        The scale of every vector, where none is stored.
    signs : ndarray or None
        Those of the rotation, where the core rotates by itself before it encodes.
    """

    def __init__(
        self,
        d: int,
        bits: float = 4,
        code: str = "chain",
        *,
        memory: int = 2,
        rotation: str = "hadamard",
        seed: int = 0,
        scale: str | None = None,
        sketch: str = "orthogonal",
        store_norm: bool = False,
        normalize: bool = False,
        plan: Plan | None = None,
    ) -> None:
        self.d = _integer("d", d, MIN_D, MAX_D)
        self.seed = _integer("seed", seed, 0, 2**63 - 1)
        self.code = _choice("code", code, CODES)
        self.bits = _rate(bits, code, d)
        self.memory = _integer("memory", memory, 2, 3)
        self.rotation = _choice("rotation", rotation, ("hadamard", "haar"))
        self.scale = _choice("scale", "unbiased" if scale is None else scale, ("unbiased", "norm", "none"))
        self.sketch = _choice("sketch", sketch, ("orthogonal", "gaussian"))
        self.store_norm, self.normalize = bool(store_norm), bool(normalize)
        if self.scale == "none" and (not self.normalize or self.store_norm or code not in ("chain", "mse")):
            raise ValueError(
                f"scale 'none' needs vectors of length 1 (metric 'cosine') and code 'chain' or 'mse', got code {code!r}"
                + ("" if self.normalize else " and another metric")
            )
        self._rotation = HadamardRotation(d, seed) if rotation == "hadamard" else HaarRotation(d, seed)
        self._prod: Prod | None = None
        self.layers: Layers | None = None
        self.plan = self._checked_plan(plan)
        self.core, self._encoder = self._build()
        self.signs: np.ndarray | None = None
        if isinstance(self._rotation, HadamardRotation) and self._prod is None and self.layers is None:
            # A copy that may be written: a read-only array reaches the core by way of an exception.
            self.signs = self._rotation.signs.copy()
        self.code_size: int = self.core.code_size
        self.n_scalars = (2 if code == "prod" else self.scale != "none") + self.store_norm
        self.same_scale = float(np.float32(1 / math.sqrt(d))) if self.scale == "none" else None

    def _checked_plan(self, plan: Plan | None) -> Plan | None:
        if plan is None:
            return None
        self.check_plannable()
        if plan.d != self.d:
            raise ValueError(f"plan must be of d = {self.d}, got {plan.d}")
        if plan.memory != self.memory or plan.seed != self.seed:
            raise ValueError("plan must have the memory and the seed of the quantizer")
        return plan

    def check_plannable(self) -> None:
        """Raise ValueError if this kind of code takes no plan."""
        if self.code != "chain" or self.rotation != "hadamard" or self.scale != "unbiased":
            raise ValueError(
                "plan needs code='chain', rotation='hadamard' and scale='unbiased', "
                f"got {self.code!r}, {self.rotation!r} and {self.scale!r}"
            )

    def _build(self) -> tuple[_core.Code, _core.Code]:
        """The code that is searched and the one that encodes; they differ where one scalar code has two forms."""
        d, bits = self.d, self.bits
        if self.code == "chain":
            core = mixed_code(d, bits, self.memory) if self.plan is None else self.plan.core()
            return core, core
        if self.code == "layered":
            self.layers = Layers(d, bits, self.memory, self.seed)
            return self.layers.core, self.layers.core
        if self.code == "mse":
            centroids = lloyd_max(d, int(bits))
            encoder = _core.scalar_code(d, int(bits), centroids)
            if bits in (1, 2, 4):
                return _core.chain_code(d, 1, int(4 // bits), nibble_tables(centroids)), encoder
            return encoder, encoder
        self._prod = Prod(d, int(bits), self.sketch, self.seed)
        if bits == 1:
            core = _core.sign_code(d)
        else:
            core = _core.with_signs(_core.scalar_code(d, int(bits) - 1, self._prod.centroids))
        return core, core

    def config(self) -> dict[str, Any]:
        """JSON-able arguments that make the same quantizer again."""
        names = (
            "d",
            "bits",
            "code",
            "memory",
            "rotation",
            "seed",
            "scale",
            "sketch",
            "store_norm",
            "normalize",
        )
        config = {name: getattr(self, name) for name in names}
        # Codes mean what they mean only with the tables they were made with.
        config["tables"] = tables_fingerprint() if self.code in _OF_CHAINS else None
        config["plan"] = None if self.plan is None else self.plan.describe()
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> Quantizer:
        """The quantizer of a `config()`; `arrays` are those of its plan, by name."""
        options = dict(config)
        tables, plan = options.pop("tables", None), options.pop("plan", None)
        if tables != (tables_fingerprint() if options.get("code") in _OF_CHAINS else None):
            raise ValueError(f"tables must be those of this version, {tables_fingerprint()}, got {tables!r}")
        if plan is not None:
            Plan.shapes(options["d"], plan)
            options["plan"] = Plan.from_description(plan, options["seed"], options["memory"], arrays or {})
        return cls(**options)

    def same_as(self, other: Quantizer) -> bool:
        """Whether both give the same codes."""
        mine, theirs = (q.plan.arrays() if q.plan else {} for q in (self, other))
        return self.config() == other.config() and all(
            np.array_equal(mine[name], theirs[name]) for name in mine
        )

    def __repr__(self) -> str:
        options = self.config() | {"plan": self.plan}
        return f"Quantizer({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    def with_plan(self, plan: Plan | None) -> Quantizer:
        """The same quantizer under a plan, or without one."""
        options = self.config()
        del options["tables"], options["plan"]
        return Quantizer(**options, plan=plan)

    def normalized(self, x: np.ndarray) -> np.ndarray:
        """Rows float32 [n, d] as they are, or at length 1 if the quantizer takes them so."""
        if not self.normalize:
            return x
        lengths = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
        return (x / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """Rotated rows float32 [n, d] of float32 [n, d]."""
        return self._rotation.rotate(x)

    def query(self, q: np.ndarray, metric: str, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """What the scan needs of queries.

        Parameters
        ----------
        q : ndarray
            float32 [nq, d].
        metric : str
            "l2", "ip" or "cosine".
        threads : int
            0 takes the default.

        Returns
        -------
        projected : ndarray
            float32 [nq, core.query_size], multiplied with reconstructed coordinates.
        constants : ndarray
            float64 [nq]: the squared norm for l2, otherwise what every score lacks.
        """
        q = self.normalized(q)
        if metric == "l2":
            q = q if self.plan is None else q - self.plan.mean
            constants = _core.row_dots(q, q, threads)
        elif self.plan is None:
            constants = np.zeros(len(q))
        else:
            constants = q.astype(np.float64) @ self.plan.mean.astype(np.float64)
        return self.project(q, threads), constants

    def project(self, q: np.ndarray, threads: int = 0) -> np.ndarray:
        """Queries float32 [nq, d] in the coordinates of the code, float32 [nq, core.query_size]."""
        if self.plan is not None and not self.plan.centres_only:
            return _core.project(q, self.plan.query_matrix, threads)
        rotated = self.rotate(q)
        if self.layers is not None:
            return self.layers.project(rotated)
        if self._prod is None:
            return rotated
        return np.ascontiguousarray(np.concatenate([rotated, self._prod.project(rotated)], axis=1))

    def lut(self, q: np.ndarray) -> np.ndarray:
        """Nibble tables float32 [nq, J, 16]: their sum over a code's nibbles is <rotate(q), y_hat>.

        Raises
        ------
        ValueError
            For codes that are not sums over nibbles of one chain: "prod", "mse" at 3, 5, 6, 7 and 8 bits, and "chain"
            between two rates.
        """
        return _core.lut(self.core, self.project(q))

    def encode(self, x: np.ndarray, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scalars of vectors.

        Parameters
        ----------
        x : ndarray
            float32 [n, d], finite.
        threads : int
            0 takes the default.

        Returns
        -------
        codes : ndarray
            uint8 [n, code_size].
        scalars : ndarray
            float32 [n, n_scalars].

        Raises
        ------
        ValueError
            If a scalar does not fit float32, or a row is zero with scale "none".
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if self.signs is not None and self.plan is None:
            codes, scalars, finite = self._encode_scaled(self.signs, x, threads)
        else:
            codes = np.empty((len(x), self.code_size), np.uint8)
            scalars = np.empty((len(x), max(1, self.n_scalars)), np.float32)
            for part in self._chunks(len(x)):
                with np.errstate(over="ignore"):
                    codes[part], scalars[part] = self._encode_chunk(x[part], threads)
            finite = np.isfinite(scalars).all()
        if not finite:
            row = int(np.flatnonzero(~np.isfinite(scalars).all(axis=1))[0])
            raise ValueError(f"x must have squared norms within float32's range, got row {row} beyond it")
        if self.same_scale is not None:
            if not scalars.all():
                row = int(np.flatnonzero(scalars[:, 0] == 0)[0])
                raise ValueError(f"x must have no row of zeros with scale 'none', got row {row}")
            return codes, np.empty((len(x), 0), np.float32)
        return codes, scalars

    def _encode_scaled(
        self, signs: np.ndarray, x: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        unit, unbiased = self.normalize and self.plan is None, self.scale == "unbiased"
        return _core.encode_scaled(self._encoder, x, signs, unit, unbiased, self.store_norm, threads)

    def _chunks(self, n: int) -> list[slice]:
        rows = max(256, _CHUNK_BYTES // (4 * self.d))
        return [slice(start, start + rows) for start in range(0, n, rows)]

    def _encode_chunk(self, x: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        if self.plan is not None:
            x = self.normalized(x) - self.plan.mean
            if not self.plan.centres_only:
                return self._planned_chunk(self.plan, x, threads)
        if self.signs is not None:
            return self._encode_scaled(self.signs, x, threads)[:2]
        y, norms = _core.normalize(x, threads)
        y = self._rotation.rotate(y)
        if self._prod is not None:
            return self._prod_scalars(self._prod, y, norms)
        codes, dots = self._encode_rotated(y, threads)
        norms = self._taken(norms)
        root = math.sqrt(self.d)
        scale = norms / root
        if self.scale == "unbiased":
            np.divide(norms * root, dots, out=scale, where=dots > 0)
        return codes, self._columns([scale], norms)

    def _encode_rotated(self, y: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        if self.layers is not None:
            return self.layers.encode(y, threads)
        codes, dots, _ = _core.encode(self._encoder, y, None, threads)
        return codes, dots.sum(axis=1)

    def _planned_chunk(self, plan: Plan, centred: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        z = _core.project(centred, plan.encode_matrix, threads)
        y, _ = _core.normalize(plan.rotate(z, threads), threads)
        codes, _, _ = _core.encode(self._encoder, y, None, threads)
        # The scale makes <x_hat, x> right where the plan measures errors, in coordinates times their deviations.
        z = plan.weighted(z)
        decoded = plan.weighted(plan.unrotate(_core.decode(self.core, codes), threads))
        energy = np.einsum("ij,ij->i", z, z, dtype=np.float64)
        overlap = np.einsum("ij,ij->i", z, decoded, dtype=np.float64)
        scale = np.divide(energy, overlap, out=np.zeros_like(energy), where=overlap > 0)
        norms = (
            np.sqrt(np.einsum("ij,ij->i", centred, centred, dtype=np.float64)) if self.store_norm else energy
        )
        return codes, self._columns([scale], norms)

    def _prod_scalars(self, prod: Prod, y: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes, residual = prod.encode(y)
        norms = self._taken(norms)
        scale = norms / math.sqrt(self.d)
        return codes, self._columns([scale, scale * residual], norms)

    def _taken(self, norms: np.ndarray) -> np.ndarray:
        return (norms > 0).astype(np.float64) if self.normalize else norms

    def _columns(self, columns: list[np.ndarray], norms: np.ndarray) -> np.ndarray:
        out = np.empty((len(norms), len(columns) + self.store_norm), np.float32)
        for i, column in enumerate([*columns, norms * norms] if self.store_norm else columns):
            out[:, i] = column
        return out

    def decode(self, codes: np.ndarray, scalars: np.ndarray) -> np.ndarray:
        """Vectors float32 [n, d] whose inner products the scan reports, of codes and scalars from `encode`."""
        out = np.empty((len(codes), self.d), np.float32)
        for part in self._chunks(len(codes)):
            out[part] = self._decode_chunk(np.ascontiguousarray(codes[part]), np.asarray(scalars[part]))
        return out

    def _decode_chunk(self, codes: np.ndarray, scalars: np.ndarray) -> np.ndarray:
        if self.layers is not None:
            return self._rotation.unrotate(self.layers.decode(codes)) * scalars[:, :1]
        y = _core.decode(self.core, codes)
        if self.plan is not None:
            centred = self._rotation.unrotate(y) if self.plan.centres_only else y @ self.plan.query_matrix.T
            return centred * scalars[:, :1] + self.plan.mean
        if self._prod is None:
            scale = scalars[:, :1] if self.same_scale is None else np.float32(self.same_scale)
            return self._rotation.unrotate(y) * scale
        first, z = y[:, : self.d], y[:, self.d :]
        return self._rotation.unrotate(first * scalars[:, :1] + self._prod.unproject(z) * scalars[:, 1:2])


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return int(value)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def _rate(bits: Any, code: str, d: int) -> float:
    number = isinstance(bits, (int, float, np.integer, np.floating)) and not isinstance(bits, bool)
    if code in ("chain", "layered"):
        low, high = (min(CHAIN_RATES), max(CHAIN_RATES)) if code == "chain" else LAYERED_BITS
        if not number or not low <= bits <= high:
            raise ValueError(
                f"bits must be a number from {low:g} to {high:g} for code {code!r}, got {bits!r}"
            )
        whole, mixed = (0.0, float(bits)) if code == "chain" else layer_bits(float(bits))
        segments = chain_segments(d, mixed)
        if len(segments) == 1:  # a rate, or too few dimensions to mix two
            return whole + segments[0][1]
    elif not number or bits not in range(1, 9):
        raise ValueError(f"bits must be one of 1, 2, 3, 4, 5, 6, 7, 8 for code {code!r}, got {bits!r}")
    return float(bits)
