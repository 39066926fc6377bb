"""Checks of what a caller passes in: each returns the one internal form or refuses, naming the argument."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from tqcore import _core

__all__ = [
    "check_codes",
    "check_deviations",
    "check_device",
    "check_ids",
    "check_integer",
    "check_metric",
    "check_radius",
    "check_vectors",
]

_FLOATS = (np.float32, np.float64, np.float16)
_SINGLE = np.dtype(np.float32)
_INT64_MAX = np.iinfo(np.int64).max


def check_integer(value: Any, name: str, low: int, high: int = _INT64_MAX) -> int:
    """Return `value` as int; TypeError unless it is an integer, ValueError unless `low <= value <= high`."""
    if type(value) is int and low <= value <= high:  # nearly always
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got the bool {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})") from None
    if not low <= number <= high:
        rule = f"at least {low}" if number < low else f"at most {high}"
        raise ValueError(f"{name} must be {rule}, got {number}")
    return number


def check_device(device: Any) -> None:
    """Raise ValueError unless `device` is "cpu", "cuda" or "cuda:" and a number."""
    name, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if device not in ("cpu", "cuda") and not (name == "cuda" and number.isdecimal()):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:" and a number, got {device!r}')


def check_metric(metric: Any) -> str:
    """Return "l2", "ip" or "cosine" for a name or FAISS's constant (0: inner product, 1: L2)."""
    if isinstance(metric, str):
        if metric in ("l2", "ip", "cosine"):
            return metric
    elif not isinstance(metric, (bool, np.bool_, float)) and metric in (0, 1):
        return ("ip", "l2")[operator.index(metric)]
    raise ValueError(
        f'metric must be "l2", "ip", "cosine", METRIC_INNER_PRODUCT (0) or METRIC_L2 (1), got {metric!r}'
    )


def check_radius(radius: Any) -> float:
    """Return `radius` as float; infinities are allowed, NaN is not."""
    number = _real(radius, "radius")
    if number != number:
        raise ValueError("radius must not be NaN, got nan")
    return number


def check_deviations(value: Any, name: str) -> float:
    """Return `value` as float, at least 0; infinity is allowed."""
    number = _real(value, name)
    if not number >= 0:
        raise ValueError(f"{name} must be at least 0, got {number:g}")
    return number


def _real(value: Any, name: str) -> float:
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})") from None


def check_vectors(x: Any, name: str, d: int) -> np.ndarray:
    """Return `x` as a C-contiguous float32 array [n, d].

    Accepts whatever NumPy reads as a real floating array (float16, float32, float64), CPU tensors of torch
    included. Raises TypeError for another dtype, and ValueError for another shape or for a row that holds NaN
    or infinity or whose squared norm does not fit float32 (every distance to it would be infinite). Integers
    are refused, as in FAISS.
    """
    try:
        array = np.asarray(x)
    except Exception as error:  # whatever the __array__ of a foreign type raises
        raise TypeError(
            f"{name} must be readable as a NumPy array, got {type(x).__name__}: {error}"
        ) from error
    if array.dtype.type not in _FLOATS:
        raise TypeError(f"{name} must hold float32, float64 or float16 values, got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{name} must be 2-dimensional, [n, {d}], got shape {array.shape}")
    if array.shape[1] != d:
        raise ValueError(f"{name} must have d = {d} columns, got shape {array.shape}")
    if array.dtype is _SINGLE:
        vectors = np.ascontiguousarray(array)
    else:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            vectors = np.ascontiguousarray(array, dtype=np.float32)
    # One pass finds NaN, infinities and overflow: any of them takes the squared norm out of float32.
    row = _core.first_unfit(vectors)
    if row >= 0:
        raise ValueError(
            f"{name} must be finite with squared norms within float32, but row {row} {_fault(array[row])}"
        )
    return vectors


def _fault(row: np.ndarray) -> str:
    for test, word in ((np.isnan, "NaN"), (np.isinf, "infinity")):
        found = test(row)
        if found.any():
            return f"holds {word} at column {int(np.argmax(found))}"
    return f"has the norm {np.linalg.norm(row.astype(np.longdouble)):.3g}"


def check_ids(ids: Any, name: str, n: int | None = None) -> np.ndarray:
    """Return `ids` as int64 [m]; with `n` given, also require m = n, no negative id and none twice."""
    array = np.asarray(ids)
    if array.size == 0 and array.dtype == np.float64 and not isinstance(ids, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must be 1-dimensional, got shape {array.shape}")
    if array.dtype == np.uint64 and array.size and array.max() > _INT64_MAX:
        raise ValueError(f"{name} must fit int64, got {array.max()}")
    array = np.ascontiguousarray(array, dtype=np.int64)
    if n is None:
        return array
    if len(array) != n:
        raise ValueError(f"{name} must give one id per vector, {n}, got {len(array)}")
    if n and array.min() < 0:
        row = int(np.argmax(array < 0))
        raise ValueError(f"{name} must not be negative, got {array[row]} at position {row}")
    if n > 1:
        ordered = np.sort(array)
        twice = ordered[1:] == ordered[:-1]
        if twice.any():
            raise ValueError(f"{name} must be unique, got {ordered[int(np.argmax(twice))]} more than once")
    return array


def check_codes(codes: Any, name: str, code_size: int, n_scalars: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [n, code_size + 4 n_scalars] as codes [n, code_size] and finite float32 [n, n_scalars]."""
    array = np.asarray(codes)
    if array.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8, got dtype {array.dtype}")
    size = code_size + 4 * n_scalars
    if array.ndim != 2 or array.shape[1] != size:
        raise ValueError(f"{name} must have the shape [n, {size}], got {array.shape}")
    scalars = np.ascontiguousarray(array[:, code_size:]).view("<f4").astype(np.float32, copy=False)
    finite = np.isfinite(scalars).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"{name} must hold finite scalars, but row {row} holds {scalars[row].tolist()}")
    return np.ascontiguousarray(array[:, :code_size]), scalars
