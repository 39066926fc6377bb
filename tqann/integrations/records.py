"""Vectors under string ids, each with a JSON record: what the vector stores of other libraries are made of."""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tqann.arguments import check_vectors
from tqann.format import IndexFileError
from tqann.index import TurboQuantIndex

__all__ = ["Hit", "RecordStore", "widened"]

_FORMAT = "tqann-records"
_VERSION = 1
_MIN_D = 8


def widened(vectors: np.ndarray) -> np.ndarray:
    """Return float32 [n, d] with zeros up to 8 dimensions, the least an index takes; no metric sees them."""
    missing = _MIN_D - vectors.shape[1]
    return np.pad(vectors, ((0, 0), (0, missing))) if missing > 0 else vectors


class Hit(NamedTuple):
    """One result of `RecordStore.search`: id, D, record and the vector as decoded, float32 [d]."""

    id: str
    distance: float
    record: Any
    vector: np.ndarray


class RecordStore:
    """A `TurboQuantIndex` under string ids, with a JSON record for each vector, saved without pickle.

    Reads may run beside changes: a search then sees the store before or after a change, and a record removed
    meanwhile is left out of its results.

    Parameters
    ----------
    options : mapping
        Arguments of `TurboQuantIndex` but `d`, which the first vectors give. Wrong ones are refused here.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        if "d" in options:
            raise ValueError(f"d must be left out: the first vectors give it, got d={options['d']!r}")
        self._options = dict(options)
        self._dimensions: int | None = None
        self._index = TurboQuantIndex(_MIN_D, **self._options)
        self._keys: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        self._records: dict[str, Any] = {}
        self._next_key = 0
        self._change = threading.RLock()

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._records

    @property
    def index(self) -> TurboQuantIndex:
        """The index of the vectors; its ids are internal, and it must not be changed."""
        return self._index

    def ids(self) -> list[str]:
        """Return all ids in the order in which they came."""
        return list(self._records)

    def record(self, id_: str) -> Any:
        """Return the record under an id; KeyError if there is none."""
        return self._records[id_]

    def put(self, ids: Sequence[str], vectors: Any, records: Sequence[Any]) -> None:
        """Store float vectors [n, d] with `records` under `ids`; what is there under an id is replaced.

        Where an id comes twice the last one counts. Raises ValueError for lengths that differ or vectors of other
        dimensions than the first ones, before anything changes.
        """
        if not len(ids) == len(vectors) == len(records):
            raise ValueError(
                f"ids, vectors and records must be equally many, got {len(ids)}, {len(vectors)}, {len(records)}"
            )
        if not len(ids):
            return
        last = {id_: position for position, id_ in enumerate(ids)}
        with self._change:
            rows = self._check(vectors, "vectors")[list(last.values())]
            if self._dimensions is None:
                self._index = TurboQuantIndex(max(rows.shape[1], _MIN_D), **self._options)
                self._dimensions = rows.shape[1]
            keys = np.arange(self._next_key, self._next_key + len(last), dtype=np.int64)
            self._index.add_with_ids(widened(rows), keys)
            self._next_key += len(last)
            replaced = [self._keys[id_] for id_ in last if id_ in self._keys]
            for (id_, position), key in zip(last.items(), keys.tolist(), strict=True):
                self._keys[id_], self._ids[key], self._records[id_] = key, id_, records[position]
            self._forget(replaced)

    def remove(self, ids: Iterable[str]) -> int:
        """Remove what is under `ids`, of which unknown ones count nothing, and return how many were removed."""
        with self._change:
            gone = [id_ for id_ in dict.fromkeys(ids) if id_ in self._records]
            for id_ in gone:
                del self._records[id_]
            self._forget([self._keys.pop(id_) for id_ in gone])
            return len(gone)

    def clear(self) -> None:
        """Remove everything; the next vectors may have other dimensions."""
        with self._change:
            self.__init__(self._options)

    def search(self, query: Any, k: int, keep: Callable[[str, Any], bool] | None = None) -> list[Hit]:
        """Return the k best for one query, float [d], best first.

        Their D is that of `TurboQuantIndex.search`: similarities, or squared distances for "l2". `keep` tells by id
        and record what may be returned.
        """
        if not self._records or k < 1:
            return []
        row = widened(self._check(np.asarray(query, dtype=np.float32)[None], "query"))
        allowed = None
        if keep is not None:
            with self._change:
                kept = [self._keys[id_] for id_, record in self._records.items() if keep(id_, record)]
            if not kept:
                return []
            allowed = np.array(kept, dtype=np.int64)
        D, I, R = self._index.search_and_reconstruct(row, min(k, len(self)), params=allowed)  # noqa: E741
        with self._change:
            ids = [self._ids.get(key) for key in I[0].tolist()]
            return [
                Hit(id_, distance, self._records[id_], vector[: self._dimensions])
                for id_, distance, vector in zip(ids, D[0].tolist(), R[0], strict=True)
                if id_ is not None
            ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the records to the JSON file `path`, and the index beside it as STEM-<16 hex digits>.tqann.

        The JSON file names the index that belongs to it and is replaced last and whole, so that at any moment
        one complete state is there. Raises TypeError for a record that JSON cannot hold, before anything is written.
        """
        target = Path(path)
        with self._change:
            name = f"{target.stem}-{secrets.token_hex(8)}.tqann"
            data = {
                "format": _FORMAT,
                "version": _VERSION,
                "options": self._options,
                "dimensions": self._dimensions,
                "index": name,
                "next_key": self._next_key,
                "records": [[id_, self._keys[id_], record] for id_, record in self._records.items()],
            }
            text = json.dumps(data, ensure_ascii=False, allow_nan=False)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._index.save(target.with_name(name))
        temporary = target.with_name(f".{name}.tmp")
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            for left in (temporary, target.with_name(name)):
                left.unlink(missing_ok=True)
            raise
        for other in target.parent.iterdir():
            if other.name != name and _index_pattern(target).fullmatch(other.name):
                other.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RecordStore:
        """Return the store that `save` wrote; IndexFileError for a file that is damaged or of another kind."""
        source = Path(path)
        try:
            data = json.loads(source.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise IndexFileError(f"{source} is not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise IndexFileError(f"{source} is not a {_FORMAT} file")
        if data.get("version") != _VERSION:
            raise IndexFileError(f"version must be {_VERSION}, got {data.get('version')!r}")
        # A bare name of our own pattern: a hostile file cannot point elsewhere.
        if not isinstance(data.get("index"), str) or not _index_pattern(source).fullmatch(data["index"]):
            raise IndexFileError(f"index must name a file beside {source.name}, got {data.get('index')!r}")
        try:
            return cls._restored(data, TurboQuantIndex.load(source.with_name(data["index"])))
        except (KeyError, TypeError, ValueError) as error:
            raise IndexFileError(f"{source} is damaged: {error}") from error

    @classmethod
    def _restored(cls, data: dict[str, Any], index: TurboQuantIndex) -> RecordStore:
        store = cls(data["options"])
        dimensions, next_key = data["dimensions"], data["next_key"]
        for id_, key, record in data["records"]:
            if type(id_) is not str or type(key) is not int:
                raise ValueError(f"records must be [string, integer, record], got [{id_!r}, {key!r}, ...]")
            store._keys[id_], store._ids[key], store._records[id_] = key, id_, record
        if not len(data["records"]) == len(store._keys) == len(store._ids):
            raise ValueError("an id or a key comes twice")
        if sorted(store._ids) != sorted(index.ids.tolist()):
            raise ValueError("its records are not those of its index")
        if type(next_key) is not int or next_key <= max(store._ids, default=-1):
            raise ValueError(f"next_key must be above every key, got {next_key!r}")
        if dimensions is None:
            if store._ids:
                raise ValueError("dimensions must be a number where there are records")
        elif type(dimensions) is not int or dimensions < 1 or max(dimensions, _MIN_D) != index.d:
            raise ValueError(f"dimensions must be those of its index, {index.d}, got {dimensions!r}")
        store._index, store._dimensions, store._next_key = index, dimensions, next_key
        index.threads = store._options.get("threads", 0)
        return store

    def _check(self, vectors: Any, name: str) -> np.ndarray:
        rows = np.asarray(vectors, dtype=np.float32)
        if rows.ndim != 2 or not rows.shape[1]:
            raise ValueError(f"{name} must be of shape [n, d], got {list(rows.shape)}")
        return check_vectors(rows, name, self._dimensions or rows.shape[1])

    def _forget(self, keys: list[int]) -> None:
        for key in keys:
            del self._ids[key]
        if keys:
            self._index.remove_ids(np.array(keys, dtype=np.int64))


def _index_pattern(path: Path) -> re.Pattern[str]:
    return re.compile(re.escape(path.stem) + r"-[0-9a-f]{16}\.tqann")
