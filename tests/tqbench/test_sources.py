"""Sources: embedded sets, generated sets, and files made on the spot."""

from __future__ import annotations

import numpy as np
import pytest

from tqbench.errors import BenchError
from tqbench.sources import SOURCES, SourceOptions, load_source
from tqbench.sources.embedded import pack_int8, unpack_int8
from tqbench.sources.files import read_vectors

ROWS = np.random.default_rng(0).standard_normal((30, 12)).astype(np.float32)


def xvecs(path, rows, dtype):
    """Write a TEXMEX file."""
    with path.open("wb") as file:
        for row in rows.astype(dtype):
            file.write(np.int32(len(row)).astype("<i4").tobytes() + row.tobytes())
    return path


@pytest.mark.parametrize(
    ("name", "n", "nq", "held_out", "low", "high"),
    [("sample", 8000, 500, 8000, 0.0, 0.05), ("sample-lm", 2000, 300, 1600, 0.5, 1.0)],
)
def test_embedded_sets(name, n, nq, held_out, low, high):
    data = load_source(name, SourceOptions())
    assert data.base.shape == (n, 384)
    assert data.queries.shape == (nq, 384)
    assert data.held_out.shape == (held_out, 384)
    assert data.base.dtype == np.float32
    assert low <= data.squared_mean <= high
    np.testing.assert_allclose(np.linalg.norm(data.base, axis=1), 1, rtol=1e-5)
    shared = {row.tobytes() for row in data.base} & {row.tobytes() for row in data.held_out}
    assert not shared


def test_int8_packing_keeps_directions():
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    again = unpack_int8(**pack_int8(unit))
    assert (unit * again).sum(axis=1).min() > 0.9999


def test_limits_and_metric():
    data = load_source("sample", SourceOptions(n=50, nq=7, metric="l2"))
    assert (len(data.base), len(data.queries), data.metric) == (50, 7, "l2")
    with pytest.raises(BenchError, match="n must be at least 1, got 0"):
        load_source("sample", SourceOptions(n=0))


@pytest.mark.parametrize("kind", ["isotropic", "clustered", "uncentred"])
def test_synthetic_is_seeded(kind):
    options = SourceOptions(kind=kind, d=40, n=500, nq=20)
    data, again = load_source("synthetic", options), load_source("synthetic", options)
    np.testing.assert_array_equal(data.base, again.base)
    assert data.base.shape == (500, 40)
    assert (data.squared_mean > 0.5) == (kind == "uncentred")


def test_digits():
    pytest.importorskip("sklearn")
    data = load_source("digits", SourceOptions())
    assert data.d == 64
    assert len(data.base) + len(data.queries) + len(data.held_out) == 1797


def test_unknown_source_is_named():
    with pytest.raises(BenchError, match="source must be one of sample"):
        load_source("nothing", SourceOptions())
    assert set(SOURCES) >= {"sample", "sample-lm", "qwen", "file", "digits", "synthetic"}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy(tmp_path, dtype):
    np.save(tmp_path / "x.npy", ROWS.astype(dtype))
    x = read_vectors(tmp_path / "x.npy")
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, ROWS.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(("suffix", "dtype"), [("fvecs", "<f4"), ("ivecs", "<i4"), ("bvecs", "u1")])
def test_xvecs(tmp_path, suffix, dtype):
    rows = np.abs(ROWS * 40).astype(dtype)
    path = xvecs(tmp_path / f"x.{suffix}", rows, dtype)
    np.testing.assert_array_equal(read_vectors(path), rows.astype(np.float32))
    assert read_vectors(path, dtype=None).dtype == np.dtype(dtype)


def test_broken_xvecs_is_refused(tmp_path):
    path = xvecs(tmp_path / "x.fvecs", ROWS, "<f4")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BenchError, match="is not fvecs"):
        read_vectors(path)
    path.write_bytes(b"")
    with pytest.raises(BenchError, match="no vector"):
        read_vectors(path)


def test_ann_benchmarks_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "set.hdf5", "w") as file:
        file["train"], file["test"] = ROWS, ROWS[:4] + 1
        file.attrs["distance"] = "angular"
    data = load_source("file", SourceOptions(base=str(tmp_path / "set.hdf5")))
    assert data.metric == "cosine"
    np.testing.assert_array_equal(data.base, ROWS)
    np.testing.assert_array_equal(data.queries, ROWS[:4] + 1)
    with pytest.raises(BenchError, match="no dataset 'other'"):
        read_vectors(tmp_path / "set.hdf5", column="other")


@pytest.mark.parametrize("fixed", [False, True])
def test_parquet(tmp_path, fixed):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lists = pa.array(ROWS.tolist(), type=pa.list_(pa.float32(), 12 if fixed else -1))
    table = pa.table({"id": list(range(30)), "embedding": lists})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    np.testing.assert_array_equal(read_vectors(tmp_path / "x.parquet"), ROWS)
    with pytest.raises(BenchError, match="must have a column of lists, found embedding"):
        read_vectors(tmp_path / "x.parquet", column="id")


def test_ragged_parquet_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"x": [[1.0, 2.0], [3.0], [1.0, 2.0, 3.0]]}), tmp_path / "x.parquet")
    with pytest.raises(BenchError, match="lists of one length"):
        read_vectors(tmp_path / "x.parquet")


def test_file_source_sets_queries_apart(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    data = load_source("file", SourceOptions(base=str(tmp_path / "x.npy"), metric="ip"))
    assert (len(data.base), len(data.queries), data.metric) == (27, 3, "ip")
    rows = {row.tobytes() for row in ROWS}
    assert {row.tobytes() for row in np.vstack([data.base, data.queries])} == rows


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.npy", "no such file"), ("x.txt", "must end in one of"), ("flat.npy", "must hold a matrix")],
)
def test_unreadable_files_are_named(tmp_path, name, message):
    np.save(tmp_path / "flat.npy", ROWS[0])
    (tmp_path / "x.txt").write_text("1 2 3")
    with pytest.raises(BenchError, match=message):
        read_vectors(tmp_path / name)


def test_values_are_checked(tmp_path):
    rows = ROWS.copy()
    rows[3, 3] = np.nan
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(BenchError, match="finite"):
        load_source("file", SourceOptions(base=str(tmp_path / "x.npy")))
    np.save(tmp_path / "q.npy", ROWS[:, :9])
    np.save(tmp_path / "x.npy", ROWS)
    with pytest.raises(BenchError, match="queries must have 12 columns"):
        load_source("file", SourceOptions(base=str(tmp_path / "x.npy"), queries=str(tmp_path / "q.npy")))
