"""Which vectors a search may return: ids, masks and FAISS's selectors turned into a choice by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tqcore import _core

from .arguments import check_deviations, check_ids, check_integer
from .id_map import IdMap

__all__ = ["SearchParameters", "allowed_bits", "find_positions", "search_parameters", "select"]

_SELECTORS = (
    "an array of ids, a boolean mask by id, a faiss.IDSelector, "
    "tqann.SearchParameters or faiss.SearchParameters"
)


@dataclass(frozen=True)
class SearchParameters:
    """What one search does otherwise than the index.

    Parameters
    ----------
    sel : array_like or faiss.IDSelector, optional
        The ids that may be returned: integers [m] (unknown ones match nothing), a boolean mask with
        `mask[id]` true for an allowed id (ids past its end are not allowed), or a selector of FAISS. None
        allows every vector.
    threads : int, optional
        Threads of this search; 0 takes TQ_THREADS or all cores, None what the index was made with.
    refine_factor : int, optional
        Candidates for each result, at least 1, of an index with `refine_bits`; None takes that of the index.
    deviations : float, optional
        Of an index with code "layered": standard deviations of the first layer's error that are granted to every vector
        before its second layer is left out, at least 0. The default is 3; `math.inf`
        scores every vector whole.

    Examples
    --------
    >>> import numpy as np
    >>> from tqann import SearchParameters, TurboQuantIndex
    >>> index = TurboQuantIndex(8)
    >>> index.add(np.eye(8, dtype=np.float32))
    >>> D, I = index.search(np.eye(8, dtype=np.float32)[:1], 2, params=SearchParameters(sel=[3], threads=1))
    >>> I.tolist()
    [[3, -1]]
    """

    sel: Any = None
    threads: int | None = None
    refine_factor: int | None = None
    deviations: float | None = None


def search_parameters(params: Any, threads: int) -> tuple[Any, int, dict[str, Any]]:
    """Return (selector or None, threads, further options that are given) for `params` and the index's thread count."""
    if isinstance(params, SearchParameters):
        if params.threads is not None:
            threads = check_integer(params.threads, "params.threads", 0)
        options: dict[str, Any] = {}
        if params.refine_factor is not None:
            options["refine_factor"] = check_integer(params.refine_factor, "params.refine_factor", 1)
        if params.deviations is not None:
            options["deviations"] = check_deviations(params.deviations, "params.deviations")
        return params.sel, threads, options
    if _is_faiss(params) and not _is_selector(params):
        if not hasattr(params, "sel"):
            raise TypeError(f"params must be {_SELECTORS}, got faiss.{type(params).__name__}")
        return _member(params, "sel"), threads, {}
    return params, threads, {}


def select(selector: Any, id_map: IdMap, name: str) -> np.ndarray:
    """Return bool [n]: which positions of `id_map` the selector, the argument `name`, allows."""
    if _is_selector(selector):
        return _from_faiss(selector, id_map)
    array = _ids_or_mask(selector, name)
    return _from_mask(array, id_map) if array.dtype == bool else _from_ids(array, id_map)


def find_positions(selector: Any, id_map: IdMap, name: str) -> np.ndarray:
    """Return the positions that `select` allows, int64 [m] ascending; an id list needs no pass over all."""
    if not _is_selector(selector):
        array = _ids_or_mask(selector, name)
        if array.dtype != bool:
            return id_map.present(array)
    return np.flatnonzero(select(selector, id_map, name))


def allowed_bits(selector: Any, id_map: IdMap, name: str) -> np.ndarray:
    """Return what `select` allows as bits, uint8 [ceil(n / 8)], the lowest first; an id list needs no pass over all."""
    if not _is_selector(selector):
        array = _ids_or_mask(selector, name)
        if array.dtype != bool:
            return _core.bits_of(array if id_map.sequential else id_map.find(array), id_map.n)
    return np.packbits(select(selector, id_map, name), bitorder="little")


def _ids_or_mask(selector: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(selector)
    except Exception as error:  # whatever the __array__ of a foreign type raises
        raise TypeError(f"{name} must be {_SELECTORS}, got {type(selector).__name__}: {error}") from error
    if array.dtype == bool:
        if array.ndim != 1:
            raise ValueError(f"{name} must be a 1-dimensional mask, got shape {array.shape}")
        return array
    if array.dtype.kind not in "iu" and (array.size or array.ndim != 1):
        raise TypeError(f"{name} must be {_SELECTORS}, got {type(selector).__name__} of dtype {array.dtype}")
    return check_ids(array if array.size else selector, name)


def _from_ids(ids: np.ndarray, id_map: IdMap) -> np.ndarray:
    allowed = np.zeros(id_map.n, dtype=bool)
    positions = id_map.find(ids)
    allowed[positions[positions >= 0]] = True
    return allowed


def _from_mask(mask: np.ndarray, id_map: IdMap) -> np.ndarray:
    if id_map.stored is None and len(mask) == id_map.n:
        return mask
    allowed = np.zeros(id_map.n, dtype=bool)
    if id_map.stored is None:
        allowed[: len(mask)] = mask[: id_map.n]
    else:
        inside = np.flatnonzero(id_map.stored < len(mask))
        allowed[inside] = mask[id_map.stored[inside]]
    return allowed


def _is_faiss(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "faiss"


def _is_selector(value: Any) -> bool:
    return callable(getattr(value, "is_member", None))


def _from_faiss(selector: Any, id_map: IdMap) -> np.ndarray:
    rule = _RULES.get(type(selector).__name__) if _is_faiss(selector) else None
    if rule is not None:
        return rule(selector, id_map)
    ids = range(id_map.n) if id_map.stored is None else id_map.stored.tolist()
    return np.fromiter((bool(selector.is_member(i)) for i in ids), dtype=bool, count=id_map.n)


def _member(owner: Any, name: str) -> Any:
    # SWIG hands members out as the base class; the object passed in, if still the one meant, says more.
    member = getattr(owner, name)
    if member is None:
        return None
    known = list(getattr(owner, "_sp_field_refs", {}).values())
    for entry in getattr(owner, "referenced_objects", ()):
        known.extend(entry if isinstance(entry, tuple) else (entry,))
    for candidate in known:
        if _is_selector(candidate) and int(candidate.this) == int(member.this):
            return candidate
    return member


def _range(selector: Any, id_map: IdMap) -> np.ndarray:
    low, high = selector.imin, selector.imax
    if id_map.stored is not None:
        return (id_map.stored >= low) & (id_map.stored < high)
    allowed = np.zeros(id_map.n, dtype=bool)
    allowed[max(low, 0) : max(high, 0)] = True
    return allowed


def _array(selector: Any, id_map: IdMap) -> np.ndarray:
    return _from_ids(_read(selector.ids, selector.n).astype(np.int64), id_map)


def _bitmap(selector: Any, id_map: IdMap) -> np.ndarray:
    return _from_mask(np.unpackbits(_read(selector.bitmap, selector.n), bitorder="little").view(bool), id_map)


def _read(pointer: Any, n: int) -> np.ndarray:
    import faiss  # imported already: the selector is one of its objects

    return faiss.rev_swig_ptr(pointer, n)


def _not(selector: Any, id_map: IdMap) -> np.ndarray:
    return ~_from_faiss(_member(selector, "sel"), id_map)


def _pair(combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Any, IdMap], np.ndarray]:
    def rule(selector: Any, id_map: IdMap) -> np.ndarray:
        sides = (_from_faiss(_member(selector, side), id_map) for side in ("lhs", "rhs"))
        return combine(*sides)

    return rule


# IDSelectorBatch keeps its ids in a C++ set that Python cannot read, so it is asked id by id.
_RULES: dict[str, Callable[[Any, IdMap], np.ndarray]] = {
    "IDSelectorRange": _range,
    "IDSelectorArray": _array,
    "IDSelectorBitmap": _bitmap,
    "IDSelectorAll": lambda _, id_map: np.ones(id_map.n, dtype=bool),
    "IDSelectorNot": _not,
    "IDSelectorAnd": _pair(np.logical_and),
    "IDSelectorOr": _pair(np.logical_or),
    "IDSelectorXOr": _pair(np.logical_xor),
}
