"""The module for ann-benchmarks, in a package laid out as that project, run as its runner does."""

import importlib
import inspect
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML to read config.yml")

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "ann-benchmarks" / "tqann"
# What the runner calls, with the parameter names of BaseANN.
INTERFACE = {
    "fit": ["self", "X"],
    "query": ["self", "q", "n"],
    "batch_query": ["self", "X", "n"],
    "get_batch_results": ["self"],
    "get_memory_usage": ["self"],
    "get_additional": ["self"],
    "done": ["self"],
}
BASE = """
class BaseANN(object):
    def done(self):
        pass

    def __str__(self):
        return self.name
"""


@pytest.fixture(scope="module")
def algorithm(tmp_path_factory):
    """The class, imported as ann_benchmarks.algorithms.tqann."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "ann_benchmarks" / "algorithms" / "base").mkdir(parents=True)
    (root / "ann_benchmarks" / "algorithms" / "base" / "module.py").write_text(BASE)
    shutil.copytree(FOLDER, root / "ann_benchmarks" / "algorithms" / "tqann")
    sys.path.insert(0, str(root))
    try:
        yield importlib.import_module("ann_benchmarks.algorithms.tqann.module").TurboQuant
    finally:
        sys.path.remove(str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] == "ann_benchmarks"]:
            del sys.modules[name]


def definitions(metric):
    """(name, constructor arguments, query argument groups) of config.yml, expanded as ann-benchmarks does."""
    for entry in yaml.safe_load((FOLDER / "config.yml").read_text())["float"]["any"]:
        assert entry["constructor"] == "TurboQuant"
        assert entry["module"] == "ann_benchmarks.algorithms.tqann"
        assert entry["base_args"] == ["@metric"]
        for group in entry["run_groups"].values():
            queries = list(itertools.product(*group["query_args"])) if "query_args" in group else [()]
            for arguments in itertools.product(*group["args"]):
                yield entry["name"], (metric, *arguments), queries


def test_interface(algorithm):
    assert [base.__name__ for base in algorithm.__mro__][1] == "BaseANN"
    for name, parameters in INTERFACE.items():
        assert list(inspect.signature(getattr(algorithm, name)).parameters) == parameters


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
def test_every_definition_runs(algorithm, metric):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 32)).astype(np.float32)
    Q = X[:20] + 0.3 * rng.standard_normal((20, 32)).astype(np.float32)
    rows, asked = (m / np.linalg.norm(m, axis=1, keepdims=True) if metric == "angular" else m for m in (X, Q))
    exact = np.argsort(((asked[:, None] - rows[None]) ** 2).sum(2), axis=1)[:, :10]
    seen, recalls = set(), {}
    for name, arguments, query_groups in definitions(metric):
        built = algorithm(*arguments)
        built.fit(X)
        for query_arguments in query_groups:
            if query_arguments:
                built.set_query_arguments(*query_arguments)
            assert str(built) not in seen
            seen.add(str(built))
            built.batch_query(Q, 10)
            found = built.get_batch_results()
            for one, q in zip(found[:3], Q, strict=False):
                np.testing.assert_array_equal(built.query(q, 10), one)
            shared = [len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]
            recalls[(name, *arguments[1:], *query_arguments)] = np.mean(shared) / 10
        assert built.get_memory_usage() > 0
        assert built.get_additional()["code_size"] > 0
        built.done()
    assert recalls["tqann", 8, "oblivious"] > 0.95
    assert (
        recalls["tqann", 8, "oblivious"] > recalls["tqann", 2, "oblivious"] > recalls["tqann", 1, "oblivious"]
    )
    assert recalls["tqann-refined", 1, "calibrated", 8, 20] > 0.9


def test_other_metrics_are_refused(algorithm):
    with pytest.raises(ValueError, match="metric must be one of angular, euclidean, got 'hamming'"):
        algorithm("hamming", 4)
