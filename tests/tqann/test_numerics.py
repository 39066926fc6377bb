"""Numbers at the ends of their ranges: denormals, huge and tiny norms, equal vectors, every d, every k, large files."""

# ruff: noqa: E741 - D and I are the names that FAISS gives its results

import os

import numpy as np
import pytest

from tqann import TurboQuantIndex, read_index
from tqann.format import Header, StoredCode, aligned, pack_header
from tqann.journal import pack_journal_header
from tqcore.packing import blocks_for, pack_rows

CODES = [("chain", 2), ("chain", 4), ("mse", 4), ("prod", 3)]
DIMENSIONS = [8, 9, 15, 16, 17, 31, 63, 64, 65, 100, 127, 200, 384, 768, 1000, 1536, 2047, 3072, 4096]
WORST = np.finfo(np.float32).max
TINY, HUGE = 2.0**-100, 2.0**50  # their squares leave float32 at one end, and come near the other


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def expected(index, queries):
    """float64 [nq, ntotal] distances or products with the decoded vectors, by id."""
    decoded = index.reconstruct_batch(index.ids).astype(np.float64)
    queries = queries.astype(np.float64)
    if index.metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return queries @ decoded.T


@pytest.mark.parametrize(("code", "bits"), CODES)
@pytest.mark.parametrize("factor", [2.0**-140, TINY, 2.0**-30, 2.0**30, HUGE])
def test_scaled_vectors_keep_their_codes(code, bits, factor):
    """A power of two changes no bit of the code while it loses none of the vector; denormals lose some."""
    x = normal(60, 48)
    plain, scaled = (TurboQuantIndex(48, bits, "ip", code=code) for _ in range(2))
    plain.add(x)
    with np.errstate(under="ignore"):
        y = (x * np.float32(factor)).astype(np.float32)
    scaled.add(y)
    assert np.isfinite(scaled.reconstruct_batch(scaled.ids)).all()
    if factor >= TINY:
        size = plain._vectors.code_size
        np.testing.assert_array_equal(scaled.sa_encode(y)[:, :size], plain.sa_encode(x)[:, :size])
    D, I = scaled.search(x[:5], 10)
    expected_order = plain.search(x[:5], 10)[1]
    if factor >= TINY:
        np.testing.assert_array_equal(I, expected_order)
        np.testing.assert_allclose(D, np.float32(factor) * plain.search(x[:5], 10)[0], rtol=1e-5)
    else:
        assert np.isfinite(D).all()
        assert (I[:, 0] == np.arange(5)).mean() >= 0.8


@pytest.mark.parametrize(("code", "bits"), CODES)
def test_directions_of_denormals(code, bits):
    """Cosine sees directions alone, however short the vectors and the queries are."""
    x = normal(50, 64)
    index = TurboQuantIndex(64, bits, "cosine", code=code)
    index.add(x * np.float32(2.0**-126))
    D, I = index.search(x * np.float32(2.0**-120), 1)
    np.testing.assert_array_equal(I[:, 0], np.arange(50))
    assert (D > 0.5).all()
    assert (D < 1.2).all()


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(("code", "bits"), CODES)
def test_norms_of_all_sizes_in_one_index(metric, code, bits):
    norms = np.logspace(-18, 18, 37)
    x = (normal(37, 32) * norms[:, None] / 6).astype(np.float32)
    index = TurboQuantIndex(32, bits, metric, code=code)
    index.add(x)
    decoded = index.reconstruct_batch(index.ids)
    assert np.isfinite(decoded).all()
    error = np.linalg.norm(decoded - x, axis=1) / np.linalg.norm(x, axis=1)
    assert metric == "cosine" or error.max() < 1
    queries = np.concatenate([normal(4, 32, 1), x[[0, 18]]])
    D, I = index.search(queries, 37)
    assert np.isfinite(D).all()
    assert (np.sort(I, axis=1) == np.arange(37)).all()
    if metric == "l2":
        assert (D >= 0).all()
    else:
        scores = expected(index, queries)
        lengths = np.ones((6, 1)) if metric == "cosine" else np.linalg.norm(queries, axis=1, keepdims=True)
        scale = lengths * np.linalg.norm(decoded, axis=1)[I]
        assert (np.abs(np.take_along_axis(scores, I, axis=1) - D) <= 1e-3 * scale + 1e-30).all()


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_norms_out_of_range_are_refused(metric, state):
    index = TurboQuantIndex(32, 4, metric)
    index.add(normal(3, 32))
    before = state(index)
    x = np.full((2, 32), 1.0, np.float32)
    x[1] = 3e38
    with pytest.raises(ValueError, match="row 1"):
        index.add(x)
    for mine, theirs in zip(state(index), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(("code", "bits"), CODES)
def test_equal_vectors_come_by_id(metric, code, bits):
    x = normal(1, 24)
    index = TurboQuantIndex(24, bits, metric, code=code)
    index.add_with_ids(np.repeat(x, 300, axis=0), np.random.default_rng(0).permutation(300))
    D, I = index.search(np.concatenate([x, -x]), 300)
    np.testing.assert_array_equal(I, np.tile(np.arange(300), (2, 1)))
    assert (D[:, :1] == D).all()
    found = index.search(x, 7)[1]
    np.testing.assert_array_equal(found, [np.arange(7)])


@pytest.mark.parametrize("d", DIMENSIONS)
def test_every_dimension(d, tmp_path):
    x = normal(40, d)
    for metric, bits in (("l2", 4), ("ip", 1), ("cosine", 2.5)):
        index = TurboQuantIndex(d, bits, metric)
        index.add(x)
        if d >= 64:  # at smaller d one bit a dimension cannot tell 40 vectors apart
            np.testing.assert_array_equal(index.search(x, 1)[1][:, 0], np.arange(40))
        queries = normal(3, d, 2)
        D, I = index.search(queries, 40)
        if metric != "l2":
            scores = np.take_along_axis(expected(index, queries), I, axis=1)
            np.testing.assert_allclose(D, scores, rtol=1e-3, atol=2e-4 * np.abs(scores).max())
        index.sync(tmp_path / "index.tqann")
        index.add(x[:3])
        index.sync(tmp_path / "index.tqann")
        loaded = read_index(tmp_path / "index.tqann")
        for mine, theirs in zip(index.search(queries, 43), loaded.search(queries, 43), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("options", [{}, {"refine_bits": 6}, {"code": "prod"}])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_k_up_to_ntotal_and_beyond(options, metric):
    for n in (1, 2, 15, 16, 17, 31, 33, 130):
        index = TurboQuantIndex(16, 2, metric, **options)
        index.add(normal(n, 16))
        queries = normal(2, 16, 1)
        D, I = index.search(queries, n)
        assert (np.sort(I, axis=1) == np.arange(n)).all()
        steps = np.diff(D, axis=1)
        assert ((steps >= 0) if metric == "l2" else (steps <= 0)).all()
        more, ids = index.search(queries, n + 5)
        np.testing.assert_array_equal(more[:, :n], D)
        np.testing.assert_array_equal(ids[:, :n], I)
        assert (ids[:, n:] == -1).all()
        assert (more[:, n:] == (WORST if metric == "l2" else -WORST)).all()
        half = index.search(queries, n, params=np.arange(0, n, 2))[1]
        assert (np.sort(half, axis=1)[:, -len(range(0, n, 2)) :] == np.arange(0, n, 2)).all()


LARGE_D, LARGE_N = 4096, 525_000  # 2.15e9 bytes of code at 8 bits


def large(storage_rows):
    """An index of LARGE_N vectors, all zero but `storage_rows` (position -> vector), in memory never touched."""
    index = TurboQuantIndex(LARGE_D, 8, "ip", threads=1)
    storage, size = index._vectors.storage, index._vectors.code_size
    storage._blocks = np.zeros(blocks_for(LARGE_N, size), dtype=np.uint32)
    storage._scalars = np.zeros((1, storage._blocks.shape[0] * 16), dtype=np.float32)
    for position, vector in storage_rows.items():
        codes, scalars = index.quantizer.encode(vector[None])
        pack_rows(storage._blocks, position, codes)
        storage._scalars[:, position] = scalars
    storage.n = index._vectors.id_map.n = LARGE_N
    index._vectors.id_map.next_id = LARGE_N
    return index


def test_codes_past_two_gibibytes():
    x = normal(1, LARGE_D)[0]
    # The first rows set a threshold that spares the zeros, of which each would be scored again.
    index = large({0: x, 1: x, LARGE_N - 1: 2 * x, LARGE_N - 700: 3 * x})
    assert index.ntotal * index._vectors.code_size > 2**31
    D, I = index.search(x[None], 2)
    np.testing.assert_array_equal(I, [[LARGE_N - 700, LARGE_N - 1]])
    np.testing.assert_allclose(D[0], (x.astype(np.float64) ** 2).sum() * np.array([3, 2]), rtol=1e-2)
    assert np.linalg.norm(index.reconstruct(LARGE_N - 1) - 2 * x) < 0.02 * np.linalg.norm(2 * x)


@pytest.mark.skipif(os.name == "nt", reason="sparse files")
def test_files_past_two_gibibytes(tmp_path):
    """A sparse file: its last row is searched where it is, and its journal, behind 2 GiB, is read and extended."""
    path, x = tmp_path / "large.tqann", normal(3, LARGE_D)
    index = TurboQuantIndex(LARGE_D, 8, "ip", threads=1)
    code = StoredCode(index.quantizer, None)
    planning = {"mode": "oblivious", "error": 0.0, "baseline": 0.0}
    header = Header((code,), planning, "ip", LARGE_N, LARGE_N, {"codes": 0, "scalars": 0}, None, 2)
    packed = pack_header(header)
    places = header.sections(len(packed))
    codes, scalars = index.quantizer.encode(x[:1] * np.array([[1], [2]], np.float32))
    start = aligned(sum(places["scalars"]))
    with path.open("wb") as file:
        file.write(packed)
        for name, rows in (("codes", codes), ("scalars", scalars)):
            offset, size = places[name]
            for place, row in ((offset, rows[0]), (offset + size - rows[1].nbytes, rows[1])):
                file.seek(place)
                file.write(row.tobytes())
        file.seek(start)
        file.write(pack_journal_header(b"s" * 16, int.from_bytes(packed[16:20], "little")))
    assert start > 2**31
    mapped = read_index(path, mmap=True)
    mapped.threads = 1
    assert mapped.search(x[:1], 1, params=[LARGE_N - 9, LARGE_N - 1])[1] == LARGE_N - 1
    assert np.linalg.norm(mapped.reconstruct(LARGE_N - 1) - 2 * x[0]) < 0.02 * np.linalg.norm(2 * x[0])
    # All but ten vectors leave, so that the next frame is small and so is what it leaves to be read.
    mapped._vectors.storage.n = mapped._vectors.id_map.n = 10
    mapped._attached.changes.removed(np.zeros(0, np.int64), 10)
    mapped.add(x[:1])
    mapped.sync(path, compact=False)
    again = read_index(path, mmap=True)
    assert again.ntotal == 11
    again.add(x[1:])
    again.sync(path, compact=False)
    last = read_index(path, mmap=True)
    np.testing.assert_array_equal(last.search(x, 1)[1][:, 0], [0, *last.ids[-2:]])
    assert path.stat().st_blocks * 512 < 2**24
