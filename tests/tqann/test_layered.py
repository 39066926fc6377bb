"""An index with the layered code: the API, the knob of its search, and its file."""

import math

import numpy as np
import pytest

from tqann import SearchParameters, TurboQuantIndex, read_index, write_index

D = 48


@pytest.fixture
def vectors():
    return np.random.default_rng(3).standard_normal((3000, D)).astype(np.float32)


@pytest.fixture
def index(vectors):
    made = TurboQuantIndex(D, 4, "ip", code="layered")
    made.add(vectors)
    return made


def test_takes_the_bytes_of_the_chain_code(index):
    assert index.code_size == TurboQuantIndex(D, 4, "ip").code_size


def test_any_number_of_bits_fits_a_size(vectors, tmp_path):
    index = TurboQuantIndex(D, 4 - 32 / D, "ip", code="layered")
    assert index.code_size == D * 4 // 8
    index.add(vectors)
    write_index(index, tmp_path / "layered.tq")
    again = read_index(tmp_path / "layered.tq")
    assert again.bits == index.bits
    for a, b in zip(again.search(vectors[:9], 5), index.search(vectors[:9], 5), strict=True):
        assert np.array_equal(a, b)


def test_finds_what_a_whole_scan_finds(index, vectors):
    whole = index.search(vectors[:50], 10, params=SearchParameters(deviations=math.inf))
    staged = index.search(vectors[:50], 10)
    assert np.mean(whole[1] == staged[1]) > 0.995
    assert np.array_equal(staged[1][:, 0], np.arange(50))


def test_a_file_keeps_it(index, vectors, tmp_path):
    write_index(index, tmp_path / "layered.tq")
    for mmap in (False, True):
        again = read_index(tmp_path / "layered.tq", mmap=mmap)
        assert again.quantizer.same_as(index.quantizer)
        for a, b in zip(again.search(vectors[:9], 5), index.search(vectors[:9], 5), strict=True):
            assert np.array_equal(a, b)


def test_removed_vectors_are_not_found(index, vectors):
    index.remove_ids(np.arange(0, 3000, 2))
    assert (index.search(vectors[:20], 7)[1] % 2 == 1).all()


def test_changes_keep_both_layers_together(index, vectors, tmp_path):
    codes = index.sa_encode(vectors)

    def holds(changed, rows):
        fresh = TurboQuantIndex(D, 4, "ip", code="layered")
        fresh.add_sa_codes(rows, changed.ids)
        for a, b in zip(changed.search(vectors[:9], 5), fresh.search(vectors[:9], 5), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(
            changed.reconstruct_batch(changed.ids), fresh.reconstruct_batch(changed.ids)
        )

    index.sync(tmp_path / "layered.tq")
    copy = index.copy()
    index.remove_ids(np.arange(100, 2900))
    index.add(vectors[:70])
    rows = np.concatenate([codes, codes[:70]])
    holds(index, rows[index.ids])
    holds(copy, codes)
    index.sync(tmp_path / "layered.tq")
    holds(read_index(tmp_path / "layered.tq"), rows[index.ids])
    write_index(index, tmp_path / "whole.tq")
    mapped = read_index(tmp_path / "whole.tq", mmap=True)
    mapped.remove_ids([0, 5])
    holds(mapped, rows[mapped.ids])


def test_range_search_scores_every_vector_whole(index, vectors):
    distances, ids = index.search(vectors[:4], 3000, params=SearchParameters(deviations=math.inf))
    radius = float(distances[:, 20].max())
    few = SearchParameters(deviations=0)
    lims, _, found = index.range_search(vectors[:4], radius, params=few)
    for i in range(4):
        inside = ids[i][distances[i] > radius]
        assert np.array_equal(found[int(lims[i]) : int(lims[i + 1])], inside)


def test_deviations_are_checked(index, vectors):
    for value, error in ((-1, ValueError), (math.nan, ValueError), ("3", TypeError), (True, TypeError)):
        with pytest.raises(error, match="deviations"):
            index.search(vectors[:1], 1, params=SearchParameters(deviations=value))
    plain = TurboQuantIndex(D, 4, "ip")
    with pytest.raises(ValueError, match='deviations needs code="layered"'):
        plain.search(vectors[:1], 1, params=SearchParameters(deviations=3))


def test_what_it_cannot_be_combined_with():
    with pytest.raises(ValueError, match="plan needs code='chain'"):
        TurboQuantIndex(D, 4, code="layered", plan="calibrated")
    with pytest.raises(ValueError, match='refine_bits needs code="chain"'):
        TurboQuantIndex(D, 3, code="layered", refine_bits=8)


def test_first_layers_of_less_than_a_word_are_no_first_step():
    x = np.random.default_rng(5).standard_normal((50, 9)).astype(np.float32)
    index = TurboQuantIndex(9, 4, "ip", code="layered")
    index.add(x)
    whole = index.search(x, 5, params=SearchParameters(deviations=np.inf))
    for mine, expected in zip(index.search(x, 5), whole, strict=True):
        np.testing.assert_array_equal(mine, expected)
