"""The scikit-learn transformer: scikit-learn's own checks, and its neighbours against exact ones."""

import json
import pickle

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", minversion="1.6", reason="needs the extra sklearn")

from sklearn.cluster import DBSCAN  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from tqann import IndexFileError  # noqa: E402
from tqann.integrations.sklearn import TurboQuantTransformer  # noqa: E402


@parametrize_with_checks(
    [
        TurboQuantTransformer(),
        TurboQuantTransformer(mode="connectivity", metric="cosine", plan="auto", n_jobs=2),
    ]
)
def test_estimator(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
def test_graph_is_near_that_of_scikit_learn(digits, metric):
    X = digits[0][:400]
    exact = KNeighborsTransformer(metric=metric, algorithm="brute").fit_transform(X)
    graph = TurboQuantTransformer(metric=metric, bits=8).fit_transform(X)
    assert graph.shape == exact.shape
    assert graph.nnz == exact.nnz == 400 * 6
    shared = graph.multiply(exact > 0).tocsr()
    assert shared.nnz > 0.95 * 400 * 5
    true = exact.multiply(shared > 0).tocsr()
    assert abs(shared - true).max() < 0.05 * true.max()
    rows = graph.data.reshape(400, 6)
    assert (rows >= 0).all()
    assert (np.diff(rows, axis=1) >= 0).all()


def test_every_sample_is_its_own_first_neighbour(digits):
    graph = TurboQuantTransformer(n_neighbors=3).fit_transform(digits[0][:200])
    np.testing.assert_array_equal(graph.indices.reshape(200, 4)[:, 0], np.arange(200))
    # The scale of a code makes its inner product with its own vector exact.
    assert graph.data.reshape(200, 4)[:, 0].max() < 0.01 * graph.data.max()


def test_connectivity_has_ones(digits):
    graph = TurboQuantTransformer(n_neighbors=3, mode="connectivity").fit_transform(digits[0][:50])
    np.testing.assert_array_equal(graph.data, np.ones(150))


def test_classifier_and_clustering_on_the_graph(digits):
    X, y = digits
    transformer = TurboQuantTransformer(n_neighbors=10, bits=4)
    pipeline = make_pipeline(transformer, KNeighborsClassifier(5, metric="precomputed"))
    assert pipeline.fit(X[:1200], y[:1200]).score(X[1200:], y[1200:]) > 0.93
    labels = DBSCAN(eps=22, metric="precomputed").fit_predict(transformer.fit_transform(X[:600]))
    assert len(set(labels)) > 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, got 0"),
        ({"n_neighbors": 2.5}, TypeError, "n_neighbors must be an integer"),
        ({"mode": "graph"}, ValueError, "mode must be one of 'distance', 'connectivity', got 'graph'"),
        ({"metric": "manhattan"}, ValueError, "metric must be one of"),
        ({"n_jobs": -2}, ValueError, "n_jobs must be at least 1"),
        ({"bits": 9}, ValueError, "bits must"),
    ],
)
def test_bad_parameters_are_named(digits, arguments, error, message):
    with pytest.raises(error, match=message):
        TurboQuantTransformer(**arguments).fit(digits[0][:50])


def test_more_neighbours_than_samples(digits):
    fitted = TurboQuantTransformer(n_neighbors=10).fit(digits[0][:10])
    with pytest.raises(ValueError, match="n_neighbors must be at most 9 for n_samples_fit_ = 10, got 10"):
        fitted.transform(digits[0][:10])


def test_saved_and_pickled_transformers_are_the_same(digits, tmp_path):
    X = digits[0][:300]
    fitted = TurboQuantTransformer(n_neighbors=4, metric="cosine", plan="calibrated").fit(X)
    fitted.save(tmp_path / "graph")
    for other in (TurboQuantTransformer.load(tmp_path / "graph"), pickle.loads(pickle.dumps(fitted))):
        assert other.get_params() == fitted.get_params()
        assert (other.transform(X) != fitted.transform(X)).nnz == 0
        assert other.get_feature_names_out().tolist() == fitted.get_feature_names_out().tolist()


@pytest.mark.parametrize(
    "change",
    [{"n_features_in": 30}, {"format": "x"}, {"version": 2}, {"feature_names_in": ["a"]}, {"parameters": []}],
)
def test_damaged_files_are_refused(digits, tmp_path, change):
    TurboQuantTransformer().fit(digits[0][:50]).save(tmp_path)
    path = tmp_path / "transformer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(IndexFileError, match="damaged"):
        TurboQuantTransformer.load(tmp_path)
