"""Codes without a scale: what scale="norm" gives to vectors of length 1, in four bytes less."""

import numpy as np
import pytest

from tqann import SearchParameters, TurboQuantIndex, read_index, write_index

D, N = 40, 1003
OPTIONS = [{}, {"rotation": "haar"}, {"code": "mse"}, {"bits": 1.75}, {"refine_bits": 4}]


def pair(x, options):
    """The index and its model, which stores the one scale of all."""
    options = {"bits": 2} | options
    both = [TurboQuantIndex(D, metric="cosine", scale=scale, **options) for scale in ("none", "norm")]
    for index in both:
        index.add(x)
    return both


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture
def q():
    return np.random.default_rng(1).standard_normal((9, D)).astype(np.float32)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("allowed", [None, np.arange(N) % 70 == 0, np.arange(N) % 3 > 0])
def test_results_are_those_of_norm(x, q, options, allowed):
    index, model = pair(x, options)
    columns = 2 if "refine_bits" in options else 1
    assert index.sa_code_size() == model.sa_code_size() - 4 * columns
    params = None if allowed is None else SearchParameters(sel=allowed)
    for k in (1, 10, 300, N + 5):
        for got, want in zip(
            index.search(q, k, params=params), model.search(q, k, params=params), strict=True
        ):
            np.testing.assert_array_equal(got, want)
    for got, want in zip(index.range_search(q, 0.2), model.range_search(q, 0.2), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(index.reconstruct_batch(index.ids), model.reconstruct_batch(model.ids))


@pytest.mark.parametrize("options", OPTIONS)
def test_changes_and_files(x, q, options, tmp_path):
    """Removal, codes from elsewhere, files mapped or not, and a file that follows an index."""
    index, model = pair(x, options)
    index.sync(tmp_path / "followed")
    for one in (index, model):
        one.remove_ids(np.arange(0, N, 3))
        one.add(x[:20])
    index.add_sa_codes(index.sa_encode(x[:4]))
    model.add(x[:4])
    index.sync(tmp_path / "followed")
    write_index(index, tmp_path / "written")
    want = model.search(q, 10)
    for path, mapped in (("followed", False), ("written", False), ("written", True)):
        found = read_index(tmp_path / path, mmap=mapped)
        for got, expected in zip(found.search(q, 10), want, strict=True):
            np.testing.assert_array_equal(got, expected)
    merged = TurboQuantIndex(D, metric="cosine", scale="none", **({"bits": 2} | options))
    merged.merge_from(index)
    np.testing.assert_array_equal(merged.search(q, 10)[0], want[0])


def test_a_row_of_zeros_has_no_direction(x):
    index, _ = pair(x, {})
    with pytest.raises(ValueError, match=r"^x must have no row of zeros .* got row 2"):
        index.add(np.vstack([x[:2], np.zeros((1, D), np.float32)]))
    assert index.ntotal == N
    with pytest.raises(ValueError, match="scale"):
        index.merge_from(TurboQuantIndex(D, 2, "cosine", scale="norm"))
