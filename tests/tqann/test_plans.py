"""Plans on the index: when it calibrates, what it keeps, and what it says when the data change."""

import pickle
import warnings

import numpy as np
import pytest

from tqann import DriftWarning, TurboQuantIndex, read_index
from tqann.planning import auto_rows

D = 64


def rows(n, seed=0, turn=0):
    """Anisotropic, uncentred rows; `turn` picks another basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(100 + turn).standard_normal((D, D)))
    mean = np.random.default_rng(200 + turn).standard_normal(D) / 8
    x = np.random.default_rng(seed).standard_normal((n, D)) * 0.93 ** np.arange(D)
    return (x @ basis.T / 3 + mean).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_calibrated_index_round_trips(metric, tmp_path):
    index = TurboQuantIndex(D, 2, metric, plan="calibrated")
    index.add(rows(1500))
    index.remove_ids([3, 700])
    index.add(rows(20, seed=1))
    assert index.plan is not None
    want = index.search(rows(7, seed=2), 10)
    path = tmp_path / "planned.tqann"
    index.save(path)
    copies = [index.copy(), pickle.loads(pickle.dumps(index)), read_index(path), read_index(path, mmap=True)]
    for copy in copies:
        assert repr(copy.plan) == repr(index.plan)
        assert copy.drift == index.drift
        for one, two in zip(copy.search(rows(7, seed=2), 10), want, strict=True):
            np.testing.assert_array_equal(one, two)
        copy.add(rows(5, seed=3))
        assert copy.ntotal == index.ntotal + 5


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_recall_rises(metric):
    base, queries = rows(3000), rows(100, seed=1)
    unit = base / np.linalg.norm(base, axis=1, keepdims=True) if metric == "cosine" else base
    exact = queries @ unit.T if metric != "l2" else 2 * queries @ base.T - (base**2).sum(1)
    best = np.argsort(-exact, axis=1)[:, :10]
    found = {}
    for plan in ("oblivious", "calibrated"):
        index = TurboQuantIndex(D, 1, metric, plan=plan)
        index.add(base)
        ids = index.search(queries, 10)[1]
        found[plan] = np.mean(
            [len(set(a) & set(b)) for a, b in zip(ids.tolist(), best.tolist(), strict=True)]
        )
    assert found["calibrated"] > found["oblivious"] + 0.5


def test_auto_calibrates_on_a_large_first_batch_only():
    index = TurboQuantIndex(D, 2, plan="auto")
    index.add(rows(auto_rows(D) - 1))
    assert index.plan is None
    index.add(rows(auto_rows(D)))
    assert index.plan is None
    index = TurboQuantIndex(D, 2, plan="auto")
    index.add(rows(auto_rows(D)))
    assert index.plan is not None
    assert np.isfinite(index.drift)


def test_an_empty_auto_index_stays_auto_in_a_file(tmp_path):
    TurboQuantIndex(D, 2, plan="auto").save(tmp_path / "empty.tqann")
    index = read_index(tmp_path / "empty.tqann")
    index.add(rows(auto_rows(D)))
    assert index.plan is not None


def test_calibrate_before_the_first_add():
    index = TurboQuantIndex(D, 2, "ip")
    index.calibrate(rows(500), queries=rows(50, seed=1))
    plan = index.plan
    assert plan is not None
    index.add(rows(10, seed=2))
    with pytest.raises(RuntimeError, match="before the first add"):
        index.calibrate(rows(500))
    assert index.plan is plan


@pytest.mark.parametrize(
    ("sample", "queries", "error", "match"),
    [
        (rows(1), None, ValueError, "sample"),
        (rows(5)[:, :-1], None, ValueError, "sample"),
        (rows(5), rows(5)[:, :-1], ValueError, "queries"),
        (rows(5), rows(0), ValueError, "queries"),
        (np.full((5, D), np.nan, np.float32), None, ValueError, "sample"),
    ],
)
def test_wrong_samples_change_nothing(sample, queries, error, match):
    index = TurboQuantIndex(D, 2)
    with pytest.raises(error, match=match):
        index.calibrate(sample, queries)
    assert index.plan is None
    index.add(rows(5))


def test_wrong_plans_are_refused():
    with pytest.raises(ValueError, match="plan must be one of"):
        TurboQuantIndex(D, 2, plan="trained")
    with pytest.raises(ValueError, match="chain"):
        TurboQuantIndex(D, 2, code="mse", plan="auto")
    index = TurboQuantIndex(D, 2, plan="calibrated")
    with pytest.raises(ValueError, match="x must have at least 2"):
        index.add(rows(1))
    assert index.ntotal == 0
    assert index.plan is None


def test_drift_is_quiet_without_one_and_loud_after_a_shift():
    index = TurboQuantIndex(D, 2, plan="calibrated")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(rows(2000))
        index.add(rows(2000, seed=1))
    assert index.drift < 0.8
    with pytest.warns(DriftWarning, match="do not fit the plan"):
        index.add(rows(2000, turn=1) - 3 * rows(1, turn=2))
    before = index.drift
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(rows(2000, turn=1) - 3 * rows(1, turn=2))
    assert index.drift > before


@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_what_loses_recall_is_warned_of(metric, bits):
    """A complete shift, from vectors with a large mean to centred ones of another basis, and back."""
    far = rows(3000) + 2 * rows(1, turn=3)
    near = rows(3000, turn=1) - rows(3000, turn=1).mean(0)
    for sample, base in ((far, near), (near, far)):
        found = {}
        for plan in ("oblivious", "calibrated"):
            index = TurboQuantIndex(D, bits, metric)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if plan == "calibrated":
                    index.calibrate(sample)
                index.add(base)
            unit = base / np.linalg.norm(base, axis=1, keepdims=True) if metric == "cosine" else base
            queries = base[:200]
            scores = queries @ unit.T if metric != "l2" else 2 * queries @ base.T - (base**2).sum(1)
            best = np.argsort(-scores, axis=1)[:, :10]
            ids = index.search(queries, 10)[1]
            found[plan] = np.mean(
                [len(set(a) & set(b)) for a, b in zip(ids.tolist(), best.tolist(), strict=True)]
            )
        told = any(issubclass(w.category, DriftWarning) for w in caught)
        assert told == (index.drift > 1.1)
        assert told or found["calibrated"] > found["oblivious"] - 0.01


def test_isotropic_data_never_warn():
    x = np.random.default_rng(0).standard_normal((4000, D)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = TurboQuantIndex(D, 2, plan="auto")
        index.add(x[:2000])
        index.add(x[2000:])
    assert index.plan is not None
    assert index.plan.centres_only
    assert 0.9 < index.drift < 1.1


def test_merge_needs_the_same_plan():
    one, two = (TurboQuantIndex(D, 2, plan="calibrated") for _ in range(2))
    one.add(rows(500))
    two.add(rows(500, turn=1))
    with pytest.raises(ValueError, match="plan"):
        one.merge_from(two)
    three = one.copy()
    three.reset()
    three.add(rows(30, seed=5))
    one.merge_from(three)
    assert one.ntotal == 530


def test_damaged_plans_are_refused():
    from tqann import IndexFileError
    from tqann.io import from_bytes, to_bytes

    index = TurboQuantIndex(D, 2, plan="calibrated")
    index.add(rows(200))
    data = to_bytes(index)
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(data)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        with pytest.raises(IndexFileError):
            from_bytes(bytes(damaged))
    for end in rng.integers(0, len(data), 200):
        with pytest.raises(IndexFileError):
            from_bytes(data[:end])
