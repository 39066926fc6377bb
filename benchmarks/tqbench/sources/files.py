"""Vectors from files: npy, fvecs, bvecs, ivecs, HDF5 and parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import BenchError
from .dataset import Dataset, split_rows
from .options import SourceOptions

__all__ = ["FORMATS", "load_file", "read_vectors"]

FORMATS = (".npy", ".fvecs", ".bvecs", ".ivecs", ".hdf5", ".h5", ".parquet")
_XVECS = {".fvecs": np.dtype("<f4"), ".ivecs": np.dtype("<i4"), ".bvecs": np.dtype("u1")}


def load_file(options: SourceOptions) -> Dataset:
    """Base and queries from files; queries are set apart from the base where no file holds them."""
    if options.base is None:
        raise BenchError("source file needs the vectors: --base FILE")
    path = Path(options.base)
    metric, queries, held_out = "l2", None, None
    if path.suffix in (".hdf5", ".h5") and options.column is None:
        base, queries, metric = _read_ann_benchmarks(path)
    else:
        base = read_vectors(path, column=options.column)
    if options.queries is not None:
        queries = read_vectors(options.queries, column=options.column)
    if options.held_out is not None:
        held_out = read_vectors(options.held_out, column=options.column)
    if queries is None:
        base, queries, apart = split_rows(base, options.nq, 0, options.seed)
        held_out = held_out if held_out is not None else apart
    return Dataset(path.stem, f"vectors of {path.name}", base, queries, metric, held_out).limited(options)


def read_vectors(
    path: str | Path, *, column: str | None = None, dtype: type | None = np.float32
) -> np.ndarray:
    """A matrix [n, d] from a file, by its suffix (one of `FORMATS`).

    Parameters
    ----------
    path : str or Path
    column : str or None
        Column of a parquet file (default: the first one of lists), dataset of an HDF5 file ("train").
    dtype : type or None
        Element type of the result; None keeps the file's own.

    Raises
    ------
    BenchError
        When the file is absent, of an unknown kind, or not a matrix.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise BenchError(f"file must end in one of {' '.join(FORMATS)}, got {path.name!r}")
    if not path.is_file():
        raise BenchError(f"no such file: {path}")
    try:
        if path.suffix == ".npy":
            x = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix in _XVECS:
            x = _read_xvecs(path)
        elif path.suffix == ".parquet":
            x = _read_parquet(path, column)
        else:
            x = _read_hdf5(path, column or "train")
    except (ValueError, OSError, EOFError) as error:
        raise BenchError(f"cannot read {path.name}: {error}") from error
    if x.ndim != 2:
        raise BenchError(f"{path.name} must hold a matrix, got shape {x.shape}")
    if x.dtype.kind not in "fiub":
        raise BenchError(f"{path.name} must hold numbers, got dtype {x.dtype}")
    return np.ascontiguousarray(x, dtype=dtype or x.dtype)


def _read_xvecs(path: Path) -> np.ndarray:
    """Rows of a TEXMEX file: each an int32 width, then so many elements."""
    element = _XVECS[path.suffix]
    size = path.stat().st_size
    if size < 4:
        raise BenchError(f"{path.name} holds no vector: {size} bytes")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    d = int(raw[:4].view("<i4")[0])
    row = 4 + d * element.itemsize
    if d <= 0 or size % row:
        raise BenchError(f"{path.name} is not {path.suffix[1:]}: rows of width {d} do not fill {size} bytes")
    table = raw.reshape(-1, row)
    if (np.ascontiguousarray(table[:, :4]).view("<i4") != d).any():
        raise BenchError(f"{path.name} must have rows of one width")
    return np.ascontiguousarray(table[:, 4:]).view(element)


def _read_parquet(path: Path, column: str | None) -> np.ndarray:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise BenchError("parquet files need pyarrow: pip install 'tqann[bench]'") from error
    schema = parquet.read_schema(path)
    lists = [
        field.name
        for field in schema
        if pa.types.is_list(field.type)
        or pa.types.is_large_list(field.type)
        or pa.types.is_fixed_size_list(field.type)
    ]
    column = column or (lists[0] if lists else None)
    if column not in lists:
        raise BenchError(f"{path.name} must have a column of lists, found {', '.join(lists) or 'none'}")
    array = parquet.read_table(path, columns=[column]).column(column).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if array.null_count:
        raise BenchError(
            f"column {column!r} of {path.name} must have no missing rows, found {array.null_count}"
        )
    values = array.flatten().to_numpy(zero_copy_only=False)
    n = len(array)
    if n == 0 or len(values) % n or any(len(array[i]) != len(values) // n for i in range(n)):
        raise BenchError(f"column {column!r} of {path.name} must have lists of one length")
    return values.reshape(n, -1)


def _read_hdf5(path: Path, name: str) -> np.ndarray:
    with _open_hdf5(path) as file:
        if name not in file:
            raise BenchError(f"{path.name} has no dataset {name!r}, only {', '.join(file)}")
        return np.asarray(file[name])


def _read_ann_benchmarks(path: Path) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Base, queries and metric of a file in ann-benchmarks' layout."""
    if not path.is_file():
        raise BenchError(f"no such file: {path}")
    with _open_hdf5(path) as file:
        distance = str(file.attrs.get("distance", "euclidean"))
        has_queries = "test" in file
    metrics = {"euclidean": "l2", "angular": "cosine", "cosine": "cosine", "dot": "ip", "ip": "ip"}
    if distance not in metrics:
        raise BenchError(f"{path.name} asks for distance {distance!r}; known are {', '.join(metrics)}")
    queries = read_vectors(path, column="test") if has_queries else None
    return read_vectors(path), queries, metrics[distance]


def _open_hdf5(path: Path):
    try:
        import h5py
    except ImportError as error:
        raise BenchError("HDF5 files need h5py: pip install 'tqann[bench]'") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise BenchError(f"cannot read {path.name}: {error}") from error
