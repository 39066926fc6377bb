"""Every public method against its description and, where faiss is installed, against FAISS itself."""

# ruff: noqa: E741 - D and I are the names that FAISS gives its results

import copy
import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

import tqann
from tqann import METRIC_INNER_PRODUCT, METRIC_L2, TurboQuantIndex

FLT_MAX = np.finfo(np.float32).max


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def test_import_takes_numpy_alone(tmp_path):
    heavy = ("faiss", "torch", "scipy", "importlib.metadata")
    code = f"import sys, tqann; print([m for m in {heavy} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_names():
    assert (tqann.METRIC_INNER_PRODUCT, tqann.METRIC_L2) == (0, 1)
    assert len(tqann.__all__) <= 11
    assert all(hasattr(tqann, name) for name in tqann.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no_such_name"):
        tqann.no_such_name  # noqa: B018


def test_attributes(index, metric):
    assert (index.d, index.bits, index.ntotal, len(index)) == (24, 4, 150, 150)
    assert index.is_trained is True
    assert index.metric == metric
    assert index.metric_type == (METRIC_L2 if metric == "l2" else METRIC_INNER_PRODUCT)
    assert index.code_size == index.sa_code_size() == 12 + (8 if metric == "l2" else 4)
    assert repr(index) == (
        f"TurboQuantIndex(d=24, bits=4, metric='{metric}', code='chain', ntotal=150, "
        f"code_size={index.code_size})"
    )


@pytest.mark.parametrize(("given", "name"), [(0, "ip"), (1, "l2"), (np.int64(1), "l2"), ("cosine", "cosine")])
def test_metric_by_name_or_constant(given, name):
    assert TurboQuantIndex(8, metric=given).metric == name


def test_train_does_nothing(vectors):
    index = TurboQuantIndex(24)
    assert index.train(vectors) is None
    assert index.ntotal == 0


@pytest.mark.parametrize("k", [1, 10])
def test_search_shapes_order_and_values(index, queries, metric, k):
    D, I = index.search(queries, k)
    assert D.dtype == np.float32
    assert I.dtype == np.int64
    assert D.shape == I.shape == (5, k)
    assert (np.diff(D, axis=1) >= 0).all() if metric == "l2" else (np.diff(D, axis=1) <= 0).all()
    decoded = index.reconstruct_n().astype(np.float64)
    q = queries / np.linalg.norm(queries, axis=1, keepdims=True) if metric == "cosine" else queries
    products = np.take_along_axis(q @ decoded.T, I, axis=1)
    if metric == "l2":
        norms = np.square(self_norms(index))
        expected = (q.astype(float) ** 2).sum(1)[:, None] + norms[I] - 2 * products
        np.testing.assert_allclose(D, np.maximum(expected, 0), rtol=1e-4, atol=1e-3)
    else:
        np.testing.assert_allclose(D, products, rtol=1e-4, atol=1e-4)


def self_norms(index):
    return np.linalg.norm(np.random.default_rng(7).standard_normal((150, 24)).astype(np.float32), axis=1)


def test_near_vectors_are_found(index, vectors):
    _, I = index.search(vectors, 1)
    assert (I[:, 0] == np.arange(150)).mean() > 0.99


def test_k_past_ntotal_pads_as_faiss(index, queries, metric):
    D, I = index.search(queries, 153)
    same((D[:, :150], I[:, :150]), index.search(queries, 150))
    assert (I[:, 150:] == -1).all()
    assert (D[:, 150:] == (FLT_MAX if metric == "l2" else -FLT_MAX)).all()
    assert np.array_equal(np.sort(I[:, :150], axis=1), np.tile(np.arange(150), (5, 1)))


def test_empty_index_and_empty_batches(metric, queries):
    index = TurboQuantIndex(24, metric=metric)
    D, I = index.search(queries, 3)
    assert (I == -1).all()
    worst = FLT_MAX if metric == "l2" else -FLT_MAX
    assert set(D.ravel()) == {worst}
    lims, D, I = index.range_search(queries, 1.0)
    assert lims.tolist() == [0] * 6
    assert len(D) == len(I) == 0
    index.add(queries[:0])
    index.add_with_ids(queries[:0], [])
    assert index.ntotal == 0
    index.add(queries)
    D, I = index.search(queries[:0], 3)
    assert D.shape == I.shape == (0, 3)
    lims, D, I = index.range_search(queries[:0], 1.0)
    assert lims.tolist() == [0]
    assert index.assign(queries[:0]).shape == (0, 1)
    assert index.sa_encode(queries[:0]).shape == (0, index.code_size)
    assert index.sa_decode(np.zeros((0, index.code_size), np.uint8)).shape == (0, 24)
    assert index.reconstruct_batch([]).shape == (0, 24)
    assert index.reconstruct_n(0, 0).shape == (0, 24)
    assert index.remove_ids([]) == 0


def test_equal_vectors_come_by_smaller_id(metric, queries):
    index = TurboQuantIndex(24, metric=metric)
    index.add_with_ids(np.repeat(queries[:1], 6, axis=0), [50, 3, 99, 7, 1, 20])
    assert index.search(queries, 6)[1].tolist() == [[1, 3, 7, 20, 50, 99]] * 5


def test_range_search_is_strict_and_sorted(sparse_index, queries, metric):
    D, I = sparse_index.search(queries, sparse_index.ntotal)
    radius = float(D[0, 30])
    lims, values, labels = sparse_index.range_search(queries, radius)
    assert lims.dtype == np.uint64
    assert values.dtype == np.float32
    assert labels.dtype == np.int64
    for row in range(5):
        inside = D[row] < radius if metric == "l2" else D[row] > radius
        part = slice(int(lims[row]), int(lims[row + 1]))
        same((values[part], labels[part]), (D[row][inside], I[row][inside]))
    everything = np.inf if metric == "l2" else -np.inf
    assert sparse_index.range_search(queries, everything)[0][-1] == 5 * sparse_index.ntotal
    assert sparse_index.range_search(queries, -everything)[0][-1] == 0


def test_search_and_reconstruct(sparse_index, queries):
    D, I, R = sparse_index.search_and_reconstruct(queries, 102)
    same((D, I), sparse_index.search(queries, 102))
    assert R.shape == (5, 102, 24)
    assert np.isnan(R[:, 100:]).all()
    np.testing.assert_array_equal(R[2, :100], sparse_index.reconstruct_batch(I[2, :100]))


def test_assign_is_search_without_distances(index, queries):
    np.testing.assert_array_equal(index.assign(queries, 4), index.search(queries, 4)[1])
    assert index.assign(queries).shape == (5, 1)


def test_reconstruct(index, vectors, metric):
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors
    decoded = index.reconstruct_n(0, 150)
    error = np.square(decoded - expected).sum() / np.square(expected).sum()
    assert error < 0.02
    np.testing.assert_array_equal(index.reconstruct(17), decoded[17])
    np.testing.assert_array_equal(index.reconstruct_n(10, 5), decoded[10:15])
    np.testing.assert_array_equal(index.reconstruct_n(140), decoded[140:])
    np.testing.assert_array_equal(index.reconstruct_batch([3, 3, 149]), decoded[[3, 3, 149]])
    np.testing.assert_array_equal(index.reconstruct_n(), decoded)


def test_removal_keeps_ids_and_add_goes_on_after_the_largest(index, vectors, queries):
    before = {i: index.reconstruct(i) for i in range(150)}
    assert index.remove_ids([0, 149, 75, 75, 1000, -4]) == 3
    assert sorted(index.ids) == [i for i in range(150) if i not in (0, 75, 149)]
    for i in index.ids:
        np.testing.assert_array_equal(index.reconstruct(i), before[i])
    index.add(vectors[:2])
    assert sorted(index.ids)[-2:] == [150, 151]
    assert index.remove_ids(np.array([150])) == 1
    index.add(vectors[:1])
    assert 152 in index.ids
    assert 150 not in index.ids


def test_tail_removal_does_not_reuse_ids(index, vectors):
    index.remove_ids(range(100, 150))
    assert index.ids.tolist() == list(range(100))
    index.add(vectors[:3])
    assert index.ids.tolist() == [*range(100), 150, 151, 152]


def test_remove_everything_then_add(index, vectors):
    assert index.remove_ids(index.ids) == 150
    assert index.ntotal == 0
    assert (index.search(vectors[:1], 2)[1] == -1).all()
    index.add(vectors[:1])
    assert index.ids.tolist() == [150]


def test_reset_starts_again(sparse_index, vectors):
    sparse_index.reset()
    assert len(sparse_index) == 0
    sparse_index.add(vectors[:2])
    assert sparse_index.ids.tolist() == [0, 1]


def test_large_ids(metric, vectors):
    index = TurboQuantIndex(24, metric=metric)
    top = 2**63 - 1
    index.add_with_ids(vectors[:2], np.array([top, 5], dtype=np.uint64))
    assert set(index.search(vectors[:1], 2)[1][0]) == {top, 5}
    with pytest.raises(ValueError, match="ids must fit int64"):
        index.add(vectors[:1])
    assert index.ntotal == 2
    assert index.remove_ids([top]) == 1


def test_merge_of_numbered_vectors_numbers_on(index, metric, vectors):
    other = TurboQuantIndex(24, 4, metric)
    other.add(vectors[:10])
    codes = other.sa_encode(vectors[:10])
    index.merge_from(other)
    assert (index.ntotal, other.ntotal) == (160, 0)
    assert index.ids.tolist() == list(range(160))
    np.testing.assert_array_equal(index.reconstruct_n(150, 10), index.sa_decode(codes))


def test_merge_keeps_given_ids(index, sparse_index, metric, vectors):
    ids, decoded = sparse_index.ids, sparse_index.reconstruct_batch(sparse_index.ids)
    index.merge_from(sparse_index, 1000)
    np.testing.assert_array_equal(index.reconstruct_batch(ids + 1000), decoded)
    other = TurboQuantIndex(24, 4, metric)
    other.add_with_ids(vectors[:2], [10**6, 5])
    with pytest.raises(ValueError, match="ids of other must not be in the index yet, but 5 is"):
        index.merge_from(other)
    assert (index.ntotal, other.ntotal) == (250, 2)


def test_codes_travel(index, vectors):
    codes = index.sa_encode(vectors[:20])
    assert codes.dtype == np.uint8
    assert codes.shape == (20, index.code_size)
    np.testing.assert_array_equal(index.sa_decode(codes), index.reconstruct_n(0, 20))
    index.add_sa_codes(codes)
    index.add_sa_codes(codes[:2], ids=[1001, 1000])
    np.testing.assert_array_equal(index.reconstruct_n(150, 20), index.reconstruct_n(0, 20))
    np.testing.assert_array_equal(index.reconstruct_batch([1001, 1000]), index.reconstruct_n(0, 2))


@pytest.mark.parametrize(
    "duplicate", [TurboQuantIndex.copy, copy.copy, copy.deepcopy, lambda i: pickle.loads(pickle.dumps(i))]
)
def test_copies_are_independent(sparse_index, queries, vectors, duplicate):
    sparse_index.threads = 2
    twin = duplicate(sparse_index)
    before = sparse_index.search(queries, 20)
    same(twin.search(queries, 20), before)
    assert twin.threads == 2
    np.testing.assert_array_equal(twin.ids, sparse_index.ids)
    twin.remove_ids(twin.ids[:30])
    twin.add(vectors)
    same(sparse_index.search(queries, 20), before)
    sparse_index.reset()
    assert twin.ntotal == 220


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.dtype(">f4")])
def test_other_float_types_are_converted(metric, vectors, dtype):
    given = vectors.astype(dtype)
    one, two = TurboQuantIndex(24, metric=metric), TurboQuantIndex(24, metric=metric)
    one.add(given)
    two.add(given.astype(np.float32))
    same(one.search(given[:3], 5), two.search(given[:3].astype(np.float32), 5))


def test_layouts_and_foreign_arrays_are_accepted(index, vectors, queries):
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return queries

    expected = index.search(queries, 5)
    same(index.search(np.asfortranarray(queries), 5), expected)
    same(index.search(np.repeat(queries, 2, axis=1)[:, ::2], 5), expected)
    same(index.search(queries.tolist(), 5), expected)
    same(index.search(Tensor(), 5), expected)
    read_only = vectors.copy()
    read_only.flags.writeable = False
    index.add(read_only)


def test_built_in_any_steps_the_same(metric, vectors, queries):
    whole, steps = TurboQuantIndex(24, metric=metric), TurboQuantIndex(24, metric=metric)
    whole.add(vectors)
    for start, stop in [(0, 1), (1, 16), (16, 17), (17, 49), (49, 50), (50, 150)]:
        steps.add(vectors[start:stop])
    same(whole.search(queries, 150), steps.search(queries, 150))


@pytest.mark.parametrize(
    ("code", "bits"), [("chain", 2.5), ("mse", 3), ("prod", 2), ("chain", 0.5), ("mse", 8)]
)
def test_every_code_works(code, bits, metric, vectors, queries):
    index = TurboQuantIndex(24, bits, metric, code=code)
    index.add(vectors)
    D, I = index.search(queries, 10)
    assert np.isfinite(D).all()
    assert index.code_size == index.sa_encode(vectors[:1]).shape[1]
    twin = pickle.loads(pickle.dumps(index))
    same(twin.search(queries, 10), (D, I))


def test_zero_vectors(metric):
    index = TurboQuantIndex(24, metric=metric)
    index.add(np.zeros((3, 24), np.float32))
    D, I = index.search(np.zeros((1, 24), np.float32), 3)
    assert I.tolist() == [[0, 1, 2]]
    assert D.tolist() == [[0, 0, 0]]
    assert not index.reconstruct_n().any()


def test_faiss_agrees_on_decoded_vectors(sparse_index, queries, metric):
    faiss = pytest.importorskip("faiss")
    if metric == "l2":
        pytest.skip("l2 uses the norm of the vector, FAISS that of the decoded one")
    flat = faiss.IndexIDMap2(faiss.IndexFlatIP(24))
    flat.add_with_ids(sparse_index.reconstruct_batch(sparse_index.ids), sparse_index.ids)
    q = queries / np.linalg.norm(queries, axis=1, keepdims=True) if metric == "cosine" else queries
    D, I = sparse_index.search(queries, 110)
    faiss_D, faiss_I = flat.search(q, 110)
    np.testing.assert_array_equal(I, faiss_I)
    np.testing.assert_allclose(D, faiss_D, rtol=1e-4, atol=1e-5)
    ours, theirs = sparse_index.range_search(queries, 1.0), flat.range_search(q, 1.0)
    np.testing.assert_array_equal(ours[0], theirs[0])
    for mine, his in zip(ours, theirs, strict=True):
        assert mine.dtype == his.dtype
    for row in range(5):
        part = slice(int(ours[0][row]), int(ours[0][row + 1]))
        assert set(ours[2][part]) == set(theirs[2][part])


def test_faiss_has_the_same_shapes_and_sentinels(metric, queries):
    faiss = pytest.importorskip("faiss")
    theirs = faiss.IndexFlat(24, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)
    ours = TurboQuantIndex(24, metric=metric)
    assert ours.metric_type == theirs.metric_type
    for index in (ours, theirs):
        index.add(queries[:2])
    for name, arguments in {
        "search": (queries, 3),
        "assign": (queries, 2),
        "search_and_reconstruct": (queries, 3),
        "reconstruct_n": (0, 2),
        "reconstruct": (1,),
        "reconstruct_batch": (np.array([1, 0]),),
    }.items():
        pairs = [getattr(index, name)(*arguments) for index in (ours, theirs)]
        pairs = [p if isinstance(p, tuple) else (p,) for p in pairs]
        for mine, his in zip(*pairs, strict=True):
            assert (mine.shape, mine.dtype) == (his.shape, his.dtype), name
    D, I = ours.search(queries, 3)
    faiss_D, faiss_I = theirs.search(queries, 3)
    np.testing.assert_array_equal(I[:, 2], faiss_I[:, 2])
    np.testing.assert_array_equal(D[:, 2], faiss_D[:, 2])
    R, faiss_R = ours.search_and_reconstruct(queries, 3)[2], theirs.search_and_reconstruct(queries, 3)[2]
    np.testing.assert_array_equal(np.isnan(R), np.isnan(faiss_R))
    assert ours.remove_ids(np.array([1, 7])) == theirs.remove_ids(np.array([1, 7])) == 1


def test_torch_tensors_without_importing_torch(index, queries):
    torch = pytest.importorskip("torch")
    same(index.search(torch.from_numpy(queries), 5), index.search(queries, 5))
    assert "torch" not in importlib.import_module("tqann.arguments").__dict__
