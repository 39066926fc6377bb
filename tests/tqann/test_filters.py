"""Filters: every way to name allowed ids gives what a search of these vectors alone gives."""

# ruff: noqa: E741 - D and I are the names that FAISS gives its results

import numpy as np
import pytest

from tqann import SearchParameters, TurboQuantIndex

FLT_MAX = np.finfo(np.float32).max


@pytest.fixture(params=["index", "sparse_index"])
def target(request, metric):
    return request.getfixturevalue(request.param)


def check(index, queries, params, allowed):
    """`params` must let a search return the ids in `allowed` and no others, in the order of a full search."""
    D, I = index.search(queries, index.ntotal)
    k = len(allowed) + 2
    found_D, found_I = index.search(queries, k, params=params)
    everything = FLT_MAX if index.metric == "l2" else -FLT_MAX
    lims, range_D, range_I = index.range_search(queries, everything, params=params)
    for row in range(len(queries)):
        keep = np.isin(I[row], list(allowed))
        kept = keep.sum()
        np.testing.assert_array_equal(found_I[row, :kept], I[row][keep])
        np.testing.assert_array_equal(found_D[row, :kept], D[row][keep])
        assert (found_I[row, kept:] == -1).all()
        part = slice(int(lims[row]), int(lims[row + 1]))
        np.testing.assert_array_equal(range_I[part], I[row][keep])
        np.testing.assert_array_equal(range_D[part], D[row][keep])
    assert index.search_and_reconstruct(queries, k, params=params)[1].tolist() == found_I.tolist()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_ids_and_masks(target, queries, share):
    rng = np.random.default_rng(3)
    ids = target.ids
    allowed = ids[rng.random(len(ids)) < share]
    mask = np.zeros(ids.max() + 1, dtype=bool)
    mask[allowed] = True
    for sel in (allowed, allowed.tolist(), allowed.astype(np.int32), np.append(allowed, [10**9, -3]), mask):
        check(target, queries, sel, allowed)
        check(target, queries, SearchParameters(sel=sel), allowed)
    check(target, queries, mask[:40], allowed[allowed < 40])
    check(target, queries, np.append(mask, np.ones(99, bool)), allowed)


def test_no_filter(target, queries):
    check(target, queries, None, target.ids)
    check(target, queries, SearchParameters(), target.ids)
    check(target, queries, SearchParameters(threads=2), target.ids)
    check(target, queries, [], [])
    check(target, queries, range(10), [i for i in target.ids if i < 10])


def test_an_own_selector(target, queries):
    class Even:
        def is_member(self, i):
            return i % 2 == 0

    check(target, queries, Even(), [i for i in target.ids if i % 2 == 0])


def test_empty_index(queries):
    index = TurboQuantIndex(24)
    for sel in ([1, 2], np.ones(4, bool)):
        assert (index.search(queries, 2, params=sel)[1] == -1).all()


def selectors(faiss, ids):
    some, others = ids[::3].copy(), ids[::4].copy()
    bits = np.zeros(int(ids.max()) + 1, dtype=bool)
    bits[others] = True
    array, batch = faiss.IDSelectorArray(some), faiss.IDSelectorBatch(others)
    bitmap = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
    span = faiss.IDSelectorRange(20, 90)
    a, b, r = set(some.tolist()), set(others.tolist()), {i for i in ids.tolist() if 20 <= i < 90}
    every = set(ids.tolist())
    yield "array", array, a
    yield "empty array", faiss.IDSelectorArray(np.zeros(0, np.int64)), set()
    yield "batch", batch, b
    yield "bitmap", bitmap, b
    yield "range", span, r
    yield "range without end", faiss.IDSelectorRange(-5, 2**62), every
    yield "range before 0", faiss.IDSelectorRange(-9, -5), set()
    yield "all", faiss.IDSelectorAll(), every
    yield "not", faiss.IDSelectorNot(array), every - a
    yield "and", faiss.IDSelectorAnd(array, span), a & r
    yield "or", faiss.IDSelectorOr(batch, span), b | r
    yield "xor", faiss.IDSelectorXOr(array, bitmap), a ^ b
    yield (
        "nested",
        faiss.IDSelectorAnd(faiss.IDSelectorNot(span), faiss.IDSelectorOr(array, batch)),
        (a | b) - r,
    )


def test_faiss_selectors(target, queries):
    faiss = pytest.importorskip("faiss")
    for name, selector, allowed in selectors(faiss, target.ids):
        check(target, queries, selector, allowed)
        check(target, queries, SearchParameters(sel=selector), allowed)
        check(target, queries, faiss.SearchParameters(sel=selector), allowed)
        twin = target.copy()
        assert twin.remove_ids(selector) == len(allowed), name
        assert set(twin.ids.tolist()) == set(target.ids.tolist()) - allowed


def test_faiss_parameters_without_selector_or_with_a_new_one(target, queries):
    faiss = pytest.importorskip("faiss")
    parameters = faiss.SearchParameters()
    check(target, queries, parameters, target.ids)
    first, second = faiss.IDSelectorRange(0, 30), faiss.IDSelectorRange(40, 60)
    parameters = faiss.SearchParameters(sel=first)
    parameters.sel = second
    check(target, queries, parameters, [i for i in target.ids if 40 <= i < 60])
    negated = faiss.IDSelectorNot(first)
    negated.sel = second
    check(target, queries, negated, [i for i in target.ids if not 40 <= i < 60])


def test_faiss_agrees(target, queries):
    faiss = pytest.importorskip("faiss")
    if target.metric != "ip":
        pytest.skip("the inner product of the decoded vectors is the same number in both")
    flat = faiss.IndexIDMap2(faiss.IndexFlatIP(24))
    flat.add_with_ids(target.reconstruct_batch(target.ids), target.ids)
    for _, selector, _ in selectors(faiss, target.ids):
        parameters = faiss.SearchParameters(sel=selector)
        ours, theirs = (
            target.search(queries, 9, params=parameters),
            flat.search(queries, 9, params=parameters),
        )
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_wrong_faiss_object(target, queries):
    faiss = pytest.importorskip("faiss")
    with pytest.raises(TypeError, match=r"^params must be .* got faiss\.IndexFlat"):
        target.search(queries, 2, params=faiss.IndexFlatL2(24))


def test_remove_by_mask(target):
    ids = target.ids
    mask = np.arange(ids.max() + 1) % 3 == 0
    gone = int((ids % 3 == 0).sum())
    assert target.remove_ids(mask) == gone
    assert len(target) == len(ids) - gone
    assert (target.ids % 3 != 0).all()
