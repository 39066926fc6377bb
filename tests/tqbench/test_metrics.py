"""Metrics against examples counted by hand, and ground truth against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from tqbench.groundtruth import exact_neighbours, ground_truth
from tqbench.metrics import latency_percentiles, median, recall_1_at_k, recall_k_at_k

TRUTH = np.array([[7, 3, 5], [1, 2, 4], [9, 8, 6]])
FOUND = np.array([[3, 7, 0], [1, 4, 2], [-1, -1, -1]])


def test_recall_by_hand():
    assert recall_1_at_k(FOUND, TRUTH, 1) == pytest.approx(1 / 3)  # row 1 alone
    assert recall_1_at_k(FOUND, TRUTH, 2) == pytest.approx(2 / 3)  # row 0 has 7 in second place
    assert recall_k_at_k(FOUND, TRUTH, 2) == pytest.approx((2 + 1 + 0) / 6)
    assert recall_k_at_k(FOUND, TRUTH, 3) == pytest.approx((2 + 3 + 0) / 9)


def test_recall_reads_no_more_than_k():
    wide = np.hstack([FOUND, TRUTH])
    assert recall_k_at_k(wide, TRUTH, 3) == recall_k_at_k(FOUND, TRUTH, 3)


@pytest.mark.parametrize(
    ("found", "truth", "k", "message"),
    [
        (FOUND, TRUTH, 0, "k must be at least 1"),
        (FOUND, TRUTH[:2], 1, "a row per query"),
        (FOUND, TRUTH, 4, "columns"),
        (FOUND[0], TRUTH, 1, "a row per query"),
    ],
)
def test_recall_refuses(found, truth, k, message):
    with pytest.raises(ValueError, match=message):
        recall_k_at_k(found, truth, k)


def test_percentiles_and_median_by_hand():
    p50, p99 = latency_percentiles([0.001, 0.002, 0.003])
    assert p50 == pytest.approx(2.0)
    assert p99 == pytest.approx(2.98)
    assert median([3.0, 1.0, 2.0]) == 2.0


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(("n", "k"), [(5, 10), (40, 10), (20000, 100)])
def test_ground_truth_is_brute_force(metric, n, k):
    rng = np.random.default_rng(n)
    base = rng.standard_normal((n, 12), dtype=np.float32) + 1
    queries = rng.standard_normal((9, 12), dtype=np.float32)
    xb, xq = base.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        xb /= np.linalg.norm(xb, axis=1, keepdims=True)
    score = -xq @ xb.T if metric != "l2" else ((xq[:, None] - xb[None]) ** 2).sum(-1)
    expected = np.argsort(score, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(exact_neighbours(base, queries, k, metric), expected)


def test_ties_go_to_the_smaller_id():
    base = np.ones((50, 8), dtype=np.float32)
    assert exact_neighbours(base, base[:1], 3, "l2").tolist() == [[0, 1, 2]]


def test_large_ground_truth_is_kept(tmp_path, monkeypatch):
    import tqbench.groundtruth as module

    monkeypatch.setenv("TQ_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_CACHED_FROM", 0)
    rng = np.random.default_rng(0)
    base, queries = rng.standard_normal((2, 100, 8), dtype=np.float32)
    first = ground_truth(base, queries, 5, "ip")
    (kept,) = (tmp_path / "ground_truth").iterdir()
    monkeypatch.setattr(module, "exact_neighbours", lambda *_: pytest.fail("computed twice"))
    np.testing.assert_array_equal(ground_truth(base, queries, 5, "ip"), first)
    monkeypatch.setattr(module, "exact_neighbours", lambda *_: np.load(kept))
    ground_truth(base + 1, queries, 5, "ip")
    assert len(list((tmp_path / "ground_truth").iterdir())) == 2


def test_wrong_metric_is_named():
    with pytest.raises(ValueError, match="metric must be"):
        exact_neighbours(np.ones((3, 8), np.float32), np.ones((1, 8), np.float32), 1, "hamming")
