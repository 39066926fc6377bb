"""Refinement: candidates by a small code, answers by a finer one."""

# ruff: noqa: E741 - I is the name that FAISS gives its results

import json
import pickle
import struct
import zlib

import numpy as np
import pytest

from tqann import IndexFileError, SearchParameters, TurboQuantIndex, read_index
from tqann.io import from_bytes, to_bytes

D = 24


@pytest.fixture(params=["oblivious", "calibrated"])
def plan(request):
    return request.param


@pytest.fixture
def refined(metric, vectors, plan):
    index = TurboQuantIndex(D, 1, metric, refine_bits=4, plan=plan)
    index.add_with_ids(vectors, np.arange(150)[::-1] * 3)
    return index


@pytest.fixture
def fine(metric, vectors, plan):
    """The finer code alone."""
    index = TurboQuantIndex(D, 4, metric, plan=plan)
    index.add_with_ids(vectors, np.arange(150)[::-1] * 3)
    return index


def same(found, wanted):
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, two)


def test_enough_candidates_give_the_search_by_the_finer_code(refined, fine, queries):
    refined.refine_factor = 30
    for k in (1, 5, 150, 200):
        same(refined.search(queries, k), fine.search(queries, k))
    few = SearchParameters(refine_factor=150)
    refined.refine_factor = 1
    same(refined.search(queries, 1, params=few), fine.search(queries, 1))
    same(refined.range_search(queries, 5.0), fine.range_search(queries, 5.0))


def test_one_candidate_each_gives_the_ids_of_the_first_code(refined, fine, vectors, metric, plan, queries):
    first = TurboQuantIndex(D, 1, metric, plan=plan)
    first.add_with_ids(vectors, np.arange(150)[::-1] * 3)
    refined.refine_factor = 1
    distances, I = refined.search(queries, 20)
    np.testing.assert_array_equal(np.sort(I), np.sort(first.search(queries, 20)[1]))
    for row, q in enumerate(queries):
        same((distances[row : row + 1], I[row : row + 1]), fine.search(q[None], 20, params=I[row]))


def test_more_candidates_find_more(metric):
    rng = np.random.default_rng(1)
    base = rng.standard_normal((4000, 64)).astype(np.float32)
    queries = rng.standard_normal((50, 64)).astype(np.float32)
    index = TurboQuantIndex(64, 1, metric, refine_bits=4)
    index.add(base)
    unit = base / np.linalg.norm(base, axis=1, keepdims=True) if metric == "cosine" else base
    exact = queries @ unit.T if metric != "l2" else 2 * queries @ base.T - (base**2).sum(1)
    best = np.argsort(-exact, axis=1)[:, :10]
    found = []
    for factor in (1, 4, 30):
        ids = index.search(queries, 10, params=SearchParameters(refine_factor=factor))[1]
        found.append(
            np.mean([len(set(a) & set(b)) for a, b in zip(ids.tolist(), best.tolist(), strict=True)])
        )
    assert found[0] + 0.5 < found[1]
    assert found[1] + 0.5 < found[2]


def test_filters_come_before_the_candidates(refined, fine, queries):
    allowed = [3, 30, 33, 300, 9999]
    refined.refine_factor = 2
    same(refined.search(queries, 4, params=allowed), fine.search(queries, 4, params=allowed))
    params = SearchParameters(sel=allowed, threads=1, refine_factor=1)
    found = refined.search(queries, 10, params=params)
    same(found, fine.search(queries, 10, params=allowed))
    assert (found[1][:, 4:] == -1).all()


def test_reconstruction_is_by_the_finer_code(refined, fine, vectors, queries):
    ids = refined.ids
    same([refined.reconstruct_batch(ids)], [fine.reconstruct_batch(ids)])
    same([refined.reconstruct(33)], [fine.reconstruct(33)])
    same([refined.sa_decode(refined.sa_encode(vectors))], [fine.sa_decode(fine.sa_encode(vectors))])
    _, I, R = refined.search_and_reconstruct(queries, 3)
    np.testing.assert_array_equal(R[0, 0], fine.reconstruct(int(I[0, 0])))


def test_both_codes_and_all_scalars_count(refined, fine, metric, plan):
    first = TurboQuantIndex(D, 1, metric)
    assert refined.refine_bits == 4
    assert fine.refine_bits is None
    if plan == "oblivious":
        assert refined.code_size == first.code_size + fine.code_size
    assert refined.sa_code_size() == refined.code_size == refined.sa_encode(np.ones((1, D), "f")).shape[1]
    assert refined.nbytes() >= 150 * refined.code_size
    assert ", refine_bits=4, " in repr(refined)
    assert "refine" not in repr(fine)


def test_codes_can_be_moved(refined, vectors, queries, metric):
    other = refined.copy()
    other.reset()
    other.add_sa_codes(refined.sa_encode(vectors), refined.ids)
    same(other.search(queries, 9), refined.search(queries, 9))
    with pytest.raises(ValueError, match="codes must have the shape"):
        other.add_sa_codes(TurboQuantIndex(D, 4, metric).sa_encode(vectors))


def test_merging_needs_the_same_finer_code(refined, vectors, metric, plan, queries):
    for other in (
        TurboQuantIndex(D, 1, metric, plan=plan),
        TurboQuantIndex(D, 1, metric, plan=plan, refine_bits=3),
    ):
        other.add(vectors)
        before = refined.search(queries, 9)
        for one, two in ((refined, other), (other, refined)):
            with pytest.raises(ValueError, match="other must have the same metric, code and plan"):
                one.merge_from(two)
        same(refined.search(queries, 9), before)
    twin = refined.copy()
    twin.remove_ids(np.arange(0, 450, 9))
    kept = twin.ntotal
    refined.merge_from(twin, 1000)
    assert refined.ntotal == 150 + kept
    assert twin.ntotal == 0
    same([refined.reconstruct(1003)], [refined.reconstruct(3)])


def test_calibrate_plans_both_codes(vectors, metric):
    index = TurboQuantIndex(D, 1, metric, plan="auto", refine_bits=4)
    index.calibrate(vectors, queries=vectors[:50])
    finer = TurboQuantIndex(D, 4, metric)
    finer.calibrate(vectors, queries=vectors[:50])
    index.add(vectors[:40])
    finer.add(vectors[:40])
    assert index.plan is not None
    same([index.reconstruct_n()], [finer.reconstruct_n()])


@pytest.mark.parametrize("mmap", [False, True])
def test_files(refined, vectors, queries, mmap, tmp_path):
    refined.refine_factor = 7
    path = tmp_path / "refined.tqann"
    refined.save(path)
    loaded = read_index(path, mmap=mmap, verify=True)
    twin = pickle.loads(pickle.dumps(loaded))
    for change in (
        lambda i: None,
        lambda i: i.remove_ids(i.ids[10:60]),
        lambda i: i.add(vectors[:20]),
    ):
        for index in (refined, loaded, twin):
            change(index)
        for index in (loaded, twin):
            assert repr(index) == repr(refined)
            assert index.refine_factor == 7
            same([index.ids], [refined.ids])
            same(index.search(queries, 9), refined.search(queries, 9))
            same(index.range_search(queries, 9.0), refined.range_search(queries, 9.0))
            same([index.reconstruct_batch(index.ids)], [refined.reconstruct_batch(refined.ids)])
    assert to_bytes(from_bytes(to_bytes(refined))) == to_bytes(refined)


def test_layout_of_the_file(vectors):
    index = TurboQuantIndex(D, 1, refine_bits=4)
    index.add(vectors)
    data = to_bytes(index)
    header = json.loads(data[24 : 24 + struct.unpack("<I", data[12:16])[0]])
    assert header["refinement"] == {"bits": 4.0, "plan": None, "factor": 10}
    sections = ["codes", "scalars", "refinement_codes", "refinement_scalars"]
    assert list(header["checksums"]) == sections
    scalars = np.frombuffer(data[-150 * 8 :], "<f4").reshape(2, 150)
    np.testing.assert_array_equal(scalars.T.copy().view(np.uint8), index.sa_encode(vectors)[:, -8:])


def resigned(data, change):
    """A file with a changed header, signed again."""
    length = struct.unpack("<I", data[12:16])[0]
    header = json.loads(data[24 : 24 + length])
    change(header)
    text = json.dumps(header).encode()
    start = data[:12] + struct.pack("<I", len(text))
    signed = start + struct.pack("<II", zlib.crc32(text, zlib.crc32(start)), 0) + text
    return signed + bytes(-len(signed) % 64) + data[-(-(24 + length) // 64) * 64 :]


@pytest.mark.parametrize("field", ["bits", "plan", "factor", "unknown"])
@pytest.mark.parametrize(
    "value", [0, -1, 1.0, 0.5, 3.0, 4, 9.25, True, "4", [], {}, {"segments": 1}, 2**70, 1e300]
)
def test_false_headers_are_refused(field, value, vectors, tmp_path):
    index = TurboQuantIndex(D, 1, refine_bits=4)
    index.add(vectors)
    data = to_bytes(index)
    from_bytes(resigned(data, lambda h: None))
    if (field, value) == ("factor", 4) and value is not True:
        return
    for change in (
        lambda h: h["refinement"].update({field: value}),
        lambda h: h.update(refinement=value),
        lambda h: h.pop("refinement"),
        lambda h: h["refinement"].pop("factor"),
    ):
        path = tmp_path / "false.tqann"
        path.write_bytes(resigned(data, change))
        for mmap in (False, True):
            with pytest.raises(IndexFileError):
                read_index(path, mmap=mmap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine_bits": 1}, "refine_bits must be above bits = 1, got 1"),
        ({"refine_bits": 0.5}, "refine_bits must be above bits = 1, got 0.5"),
        ({"refine_bits": 9}, "refine_bits must be a number from 0.5 to 8 .*got 9"),
        ({"refine_bits": "4"}, "refine_bits must be a number .*got '4'"),
        ({"refine_bits": True}, "refine_bits must be a number .*got True"),
        ({"refine_bits": 4, "code": "mse"}, "refine_bits needs code=\"chain\", got code='mse'"),
        ({"refine_bits": 4, "device": "cuda"}, "refine_bits needs device=\"cpu\", got device='cuda'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TurboQuantIndex(D, 1, **options)


def test_wrong_factors(refined, fine, queries):
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"refine_factor must be at least 1, got {value}"):
            refined.refine_factor = value
        with pytest.raises(ValueError, match=f"params.refine_factor must be at least 1, got {value}"):
            refined.search(queries, 3, params=SearchParameters(refine_factor=value))
    with pytest.raises(TypeError, match="refine_factor must be an integer"):
        refined.refine_factor = 1.5
    assert refined.refine_factor == 10
    assert fine.refine_factor is None
    with pytest.raises(ValueError, match="refine_factor needs an index made with refine_bits"):
        fine.refine_factor = 5
    with pytest.raises(ValueError, match=r"params\.refine_factor needs an index made with .*got 5"):
        fine.search(queries, 3, params=SearchParameters(refine_factor=5))
    with pytest.raises(ValueError, match='refine_bits needs device="cpu"'):
        refined.to("cuda")


def test_any_factor_is_bounded_by_the_index(refined, queries):
    refined.refine_factor = 2**63 - 1
    assert refined.search(queries, 5)[1].shape == (5, 5)
