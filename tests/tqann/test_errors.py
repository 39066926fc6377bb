"""Wrong input: each method names the argument and leaves the index as it was."""

import numpy as np
import pytest

from tqann import SearchParameters, TurboQuantIndex

D = 24


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype=dtype)


def spoiled(value, dtype=np.float32):
    x = ones(4, D, dtype=dtype)
    x[2, 5] = value
    return x


class Unreadable:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("lives on another device")


BAD_VECTORS = [
    (ones(D), ValueError, r"2-dimensional.*\(24,\)"),
    (ones(1, 1, D), ValueError, "2-dimensional"),
    (np.float32(1), ValueError, "2-dimensional"),
    (ones(3, D + 1), ValueError, r"d = 24 columns.*\(3, 25\)"),
    (ones(3, 0), ValueError, "d = 24 columns"),
    (ones(3, D, dtype=np.int32), TypeError, "dtype int32"),
    (ones(3, D, dtype=bool), TypeError, "dtype bool"),
    (ones(3, D, dtype=np.complex64), TypeError, "dtype complex64"),
    (ones(3, D, dtype=np.longdouble), TypeError, "dtype"),
    (ones(3, D).astype(str), TypeError, "dtype <U"),
    (None, TypeError, "dtype object"),
    ("text", TypeError, "dtype <U"),
    (Unreadable(), TypeError, "Unreadable: lives on another device"),
    ([[1.0] * D, [1.0]], TypeError, "readable as a NumPy array"),
    (spoiled(np.nan), ValueError, "row 2 holds NaN at column 5"),
    (spoiled(np.inf), ValueError, "row 2 holds infinity at column 5"),
    (spoiled(-np.inf), ValueError, "row 2 holds infinity"),
    (spoiled(1e300, np.float64), ValueError, r"row 2 has the norm 1e\+300"),
    (spoiled(3e38), ValueError, r"row 2 has the norm 3e\+38"),
]

VECTOR_METHODS = {
    "train": lambda index, x: index.train(x),
    "add": lambda index, x: index.add(x),
    "add_with_ids": lambda index, x: index.add_with_ids(x, [500, 501, 502, 503]),
    "search": lambda index, x: index.search(x, 2),
    "range_search": lambda index, x: index.range_search(x, 1.0),
    "search_and_reconstruct": lambda index, x: index.search_and_reconstruct(x, 2),
    "assign": lambda index, x: index.assign(x),
    "sa_encode": lambda index, x: index.sa_encode(x),
}


@pytest.fixture(params=["index", "sparse_index", "mapped"])
def target(request, metric, tmp_path):
    if request.param != "mapped":
        return request.getfixturevalue(request.param)
    request.getfixturevalue("sparse_index").save(tmp_path / "index.tqann")
    return TurboQuantIndex.load(tmp_path / "index.tqann", mmap=True)


@pytest.fixture
def refuses(target, state):
    """A function that checks that a call raises and changes nothing."""
    before = state(target)

    def check(error, message, call):
        with pytest.raises(error, match=message):
            call(target)
        for old, new in zip(before, state(target), strict=True):
            np.testing.assert_array_equal(old, new)

    return check


@pytest.mark.parametrize("method", VECTOR_METHODS)
def test_vectors(refuses, method):
    for x, error, message in BAD_VECTORS:
        refuses(error, f"^x must .*{message}", lambda index, x=x: VECTOR_METHODS[method](index, x))


@pytest.mark.parametrize("method", ["search", "assign", "search_and_reconstruct"])
def test_k(refuses, method):
    for k, error in [
        (0, ValueError),
        (-1, ValueError),
        (2.0, TypeError),
        ("3", TypeError),
        (None, TypeError),
    ]:
        refuses(error, "^k must be", lambda index, k=k: getattr(index, method)(ones(2, D), k))
    refuses(
        TypeError, "^k must be an integer, got the bool True", lambda index: index.search(ones(2, D), True)
    )
    refuses(ValueError, "^k must be at most", lambda index: index.search(ones(2, D), 2**63))


def test_radius(refuses):
    for radius, error in [
        (np.nan, ValueError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
        ([1, 2], TypeError),
    ]:
        refuses(error, "^radius must", lambda index, radius=radius: index.range_search(ones(2, D), radius))


def test_ids(refuses, target):
    present = int(target.ids[3])
    bad = [
        ([1000, 1001], ValueError, "one id per vector, 3, got 2"),
        ([1000, 1001, -1], ValueError, "not be negative, got -1 at position 2"),
        ([1000, 1001, 1000], ValueError, "unique, got 1000 more than once"),
        ([1000, 1001, present], ValueError, f"not be in the index yet, but {present} is"),
        ([1000.0, 1001.0, 1002.0], TypeError, "integers, got dtype float64"),
        ([True, False, True], TypeError, "integers, got dtype bool"),
        ([[1000, 1001, 1002]], ValueError, "1-dimensional"),
        (1000, ValueError, "1-dimensional"),
        (np.array([1000, 1001, 2**63], dtype=np.uint64), ValueError, "fit int64"),
        (["a", "b", "c"], TypeError, "integers"),
        (np.zeros(0), TypeError, "integers, got dtype float64"),
    ]
    codes = target.sa_encode(ones(3, D))
    for ids, error, message in bad:
        refuses(error, f"^ids must .*{message}", lambda index, ids=ids: index.add_with_ids(ones(3, D), ids))
        refuses(error, f"^ids must .*{message}", lambda index, ids=ids: index.add_sa_codes(codes, ids))


def test_unknown_ids(refuses, target):
    known, gone = int(target.ids[0]), 10**9
    assert target.remove_ids([gone, -1]) == 0
    refuses(
        IndexError,
        f"^key must be in the index, but the id {gone} is not",
        lambda index: index.reconstruct(gone),
    )
    refuses(IndexError, "^key must be in the index", lambda index: index.reconstruct_batch([known, gone]))
    refuses(IndexError, "^key must be in the index", lambda index: index.reconstruct_batch([known, -1]))
    refuses(ValueError, "^key must be at least 0", lambda index: index.reconstruct(-1))
    refuses(TypeError, "^key must be an integer", lambda index: index.reconstruct(1.0))
    refuses(TypeError, "^key must be an integer", lambda index: index.reconstruct(True))
    refuses(TypeError, "^key must hold integers", lambda index: index.reconstruct_batch([1.5]))
    refuses(ValueError, "^key must be 1-dimensional", lambda index: index.reconstruct_batch([[1]]))
    refuses(IndexError, "^n0 and ni must be in the index", lambda index: index.reconstruct_n(gone, 1))
    refuses(IndexError, "^ni must be at most ntotal", lambda index: index.reconstruct_n(0, 10**12))
    refuses(ValueError, "^n0 must be at least 0", lambda index: index.reconstruct_n(-1, 1))
    refuses(ValueError, "^ni must be at least -1", lambda index: index.reconstruct_n(0, -2))
    refuses(TypeError, "^ni must be an integer", lambda index: index.reconstruct_n(0, 1.0))


def test_codes(refuses, target):
    codes = target.sa_encode(ones(3, D))
    not_finite = codes.copy()
    not_finite[1, -4:] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    bad = [
        (codes[0], ValueError, "shape"),
        (codes[:, :-1], ValueError, "shape"),
        (np.concatenate([codes, codes], axis=1), ValueError, "shape"),
        (codes.astype(np.int64), TypeError, "uint8, got dtype int64"),
        (codes.tolist(), TypeError, "uint8"),
        (not_finite, ValueError, "finite scalars, but row 1"),
    ]
    for given, error, message in bad:
        refuses(error, f"^codes must .*{message}", lambda index, given=given: index.sa_decode(given))
        refuses(error, f"^codes must .*{message}", lambda index, given=given: index.add_sa_codes(given))


def test_filters(refuses):
    bad = [
        ([1.5], TypeError),
        ("text", TypeError),
        ({1, 2}, TypeError),
        (object(), TypeError),
        (Unreadable(), TypeError),
        ([[1, 2]], ValueError),
        (np.ones((2, 2), bool), ValueError),
        (np.array([2**63], dtype=np.uint64), ValueError),
        (5, ValueError),
    ]
    for sel, error in bad:
        refuses(error, "^params must", lambda index, sel=sel: index.search(ones(2, D), 2, params=sel))
        params = SearchParameters(sel=sel)
        refuses(
            error,
            "^params must",
            lambda index, params=params: index.range_search(ones(2, D), 2, params=params),
        )
        refuses(error, "^x must", lambda index, sel=sel: index.remove_ids(sel))
    for threads, error in [(-1, ValueError), (1.5, TypeError), (True, TypeError)]:
        params = SearchParameters(threads=threads)
        refuses(
            error,
            "^params.threads must",
            lambda index, params=params: index.search(ones(1, D), 1, params=params),
        )


def test_merge(refuses, target):
    refuses(TypeError, "^other must be a TurboQuantIndex, got list", lambda index: index.merge_from([]))
    refuses(ValueError, "^other must be another index", lambda index: index.merge_from(index))
    others = [
        TurboQuantIndex(D + 1, 4, target.metric),
        TurboQuantIndex(D, 3, target.metric),
        TurboQuantIndex(D, 4, "ip" if target.metric == "cosine" else "cosine"),
        TurboQuantIndex(D, 4, target.metric, seed=1),
        TurboQuantIndex(D, 4, target.metric, code="mse"),
    ]
    for other in others:
        other.add(ones(1, other.d))
        refuses(
            ValueError,
            "^other must have the same metric, code and plan",
            lambda index, other=other: index.merge_from(other),
        )
        assert other.ntotal == 1
    other = TurboQuantIndex(D, 4, target.metric)
    other.add_with_ids(ones(2, D), [5, int(target.ids[0])])
    refuses(ValueError, "^ids of other must not be in the index", lambda index: index.merge_from(other))
    refuses(ValueError, "^smallest id of other plus add_id", lambda index: index.merge_from(other, -6))
    refuses(ValueError, "^largest id of other plus add_id", lambda index: index.merge_from(other, 2**63 - 5))
    refuses(TypeError, "^add_id must be an integer", lambda index: index.merge_from(other, 1.0))
    assert other.ntotal == 2


def test_an_error_while_encoding_changes_nothing(refuses, monkeypatch):
    calls = []

    def fails(vectors, threads=0):
        calls.append(len(vectors))
        raise MemoryError("no room")

    def add(index):
        monkeypatch.setattr(type(index.quantizer), "encode", lambda self, x, threads=0: fails(x))
        try:
            index.add(ones(20, D))
        finally:
            monkeypatch.undo()

    refuses(MemoryError, "no room", add)
    assert calls == [20]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"d": 7}, ValueError, "^d must be at least 8, got 7"),
        ({"d": 65537}, ValueError, "^d must be at most 65536"),
        ({"d": 16.0}, TypeError, "^d must be an integer"),
        ({"d": True}, TypeError, "^d must be an integer"),
        ({"d": 16, "metric": "dot"}, ValueError, "^metric must be .*'dot'"),
        ({"d": 16, "metric": 2}, ValueError, "^metric must be"),
        ({"d": 16, "metric": True}, ValueError, "^metric must be"),
        ({"d": 16, "metric": None}, ValueError, "^metric must be"),
        ({"d": 16, "bits": 8.5}, ValueError, "bits"),
        ({"d": 16, "bits": 0}, ValueError, "bits"),
        ({"d": 16, "bits": "4"}, (TypeError, ValueError), "bits"),
        ({"d": 16, "code": "pq"}, ValueError, "code"),
        ({"d": 16, "bits": 2.5, "code": "mse"}, ValueError, "bits"),
        ({"d": 16, "memory": 4}, ValueError, "memory"),
        ({"d": 16, "rotation": "none"}, ValueError, "rotation"),
        ({"d": 16, "scale": "other"}, ValueError, "scale"),
        ({"d": 16, "scale": "none"}, ValueError, "^scale 'none' needs vectors of length 1"),
        (
            {"d": 16, "scale": "none", "metric": "cosine", "code": "layered"},
            ValueError,
            "^scale 'none' needs",
        ),
        ({"d": 16, "scale": "none", "metric": "cosine", "plan": "calibrated"}, ValueError, "^plan needs"),
        ({"d": 16, "sketch": "other", "code": "prod"}, ValueError, "sketch"),
        ({"d": 16, "seed": -1}, ValueError, "seed"),
        ({"d": 16, "seed": 1.5}, (TypeError, ValueError), "seed"),
        ({"d": 16, "threads": -1}, ValueError, "^threads must be at least 0"),
        ({"d": 16, "device": "cuda:x"}, ValueError, "^device must be"),
        ({"d": 16, "device": 0}, ValueError, "^device must be"),
        ({"d": 16, "device": "tpu"}, ValueError, "^device must be"),
    ],
)
def test_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        TurboQuantIndex(**arguments)
