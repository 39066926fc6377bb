"""A scikit-learn transformer: the graph of nearest neighbours, found on compressed codes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

try:
    from scipy.sparse import csr_matrix
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"tqann.integrations.sklearn needs scikit-learn 1.6 or later: pip install 'tqann[sklearn]' ({error})",
        name="sklearn",
    ) from error

from tqann.arguments import check_integer
from tqann.format import IndexFileError
from tqann.index import TurboQuantIndex

from .records import widened

__all__ = ["TurboQuantTransformer"]

_INDEX_METRICS = {"euclidean": "l2", "sqeuclidean": "l2", "cosine": "cosine"}
_MODES = ("distance", "connectivity")
_FORMAT = "tqann-transformer"


class TurboQuantTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Transform vectors into a sparse graph of their nearest neighbours, as `sklearn.neighbors.KNeighborsTransformer`.

    Neighbours and distances are those of the codes: near the true ones, and nearer with more `bits`. The result fits
    estimators that take ``metric="precomputed"`` graphs.

    Parameters
    ----------
    n_neighbors : int
        Neighbours of a sample. With mode "distance" there is one more, as each sample counts as its own.
    mode : str
        "distance", or "connectivity" for ones.
    metric : str
        "euclidean", "sqeuclidean" or "cosine" (one minus the cosine).
    bits : float
        Bits per dimension of the code; see `tqann.TurboQuantIndex`.
    refine_bits : float, optional
        Rate of a second, finer code that orders what the first one finds.
    plan : str
        "oblivious", "calibrated" or "auto".
    seed : int
        Of the rotation.
    n_jobs : int, optional
        Threads; None and -1 take TQ_THREADS or all cores.

    Attributes
    ----------
    index_ : TurboQuantIndex
        Holds the samples; fewer than 8 features are filled up with zeros.
    n_samples_fit_ : int
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where X had names.

    Examples
    --------
    >>> import numpy as np
    >>> from tqann.integrations.sklearn import TurboQuantTransformer
    >>> x = np.random.default_rng(0).standard_normal((100, 16))
    >>> TurboQuantTransformer(n_neighbors=5).fit_transform(x).shape
    (100, 100)
    """

    n_features_in_: int
    feature_names_in_: np.ndarray

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        mode: str = "distance",
        metric: str = "euclidean",
        bits: float = 4,
        refine_bits: float | None = None,
        plan: str = "oblivious",
        seed: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.mode = mode
        self.metric = metric
        self.bits = bits
        self.refine_bits = refine_bits
        self.plan = plan
        self.seed = seed
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> TurboQuantTransformer:  # noqa: ARG002
        """Encode the samples X, float [n, d]; `y` is ignored."""
        self._check_parameters()
        X = validate_data(self, X, dtype=np.float32)
        index = TurboQuantIndex(
            max(X.shape[1], 8),
            self.bits,
            _INDEX_METRICS[self.metric],
            seed=self.seed,
            plan=self.plan,
            refine_bits=self.refine_bits,
            threads=self._threads(),
        )
        index.add(widened(X))
        self.index_ = index
        self.n_samples_fit_ = len(X)
        return self

    def transform(self, X: Any) -> csr_matrix:
        """Return the graph from X, float [m, d], to the n fitted samples: float32 CSR [m, n].

        Rows are in order of distance. Raises ValueError where there are fewer samples than neighbours asked for.
        """
        check_is_fitted(self)
        self._check_parameters()
        X = validate_data(self, X, dtype=np.float32, reset=False)
        k = self.n_neighbors + (self.mode == "distance")
        if k > self.n_samples_fit_:
            raise ValueError(
                f"n_neighbors must be at most {self.n_samples_fit_ - (self.mode == 'distance')} for "
                f"n_samples_fit_ = {self.n_samples_fit_}, got {self.n_neighbors}"
            )
        self.index_.threads = self._threads()
        D, I = self.index_.search(widened(X), k)  # noqa: E741
        starts = np.arange(0, len(X) * k + 1, k)
        return csr_matrix((self._weights(D).ravel(), I.ravel(), starts), shape=(len(X), self.n_samples_fit_))

    def fit_transform(self, X: Any, y: Any = None) -> csr_matrix:
        """Fit on X, float [n, d], and return its own graph, [n, n]."""
        return self.fit(X, y).transform(X)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted transformer as the folder `path`: transformer.json and index.tqann."""
        check_is_fitted(self)
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        names = getattr(self, "feature_names_in_", None)
        data = {
            "format": _FORMAT,
            "version": 1,
            "parameters": self.get_params(),
            "n_features_in": self.n_features_in_,
            "feature_names_in": None if names is None else names.tolist(),
        }
        text = json.dumps(data, indent=1)
        self.index_.save(folder / "index.tqann")
        (folder / "transformer.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TurboQuantTransformer:
        """Return the transformer that `save` wrote; IndexFileError for files that are damaged or do not match."""
        folder = Path(path)
        try:
            data = json.loads((folder / "transformer.json").read_text(encoding="utf-8"))
            if data["format"] != _FORMAT or data["version"] != 1:
                raise ValueError(f"format and version must be {_FORMAT} and 1")
            loaded = cls(**data["parameters"])
            loaded._check_parameters()
            index = TurboQuantIndex.load(folder / "index.tqann")
            features, names = data["n_features_in"], data["feature_names_in"]
            if max(features, 8) != index.d or index.metric != _INDEX_METRICS[loaded.metric]:
                raise ValueError("transformer.json is not that of index.tqann")
            if names is not None and (len(names) != features or not all(type(name) is str for name in names)):
                raise ValueError("feature_names_in must be n_features_in strings")
        except (KeyError, TypeError, ValueError) as error:
            raise IndexFileError(f"{folder} is damaged: {error}") from error
        loaded.index_, loaded.n_samples_fit_, loaded.n_features_in_ = index, index.ntotal, features
        if names is not None:
            loaded.feature_names_in_ = np.array(names, dtype=object)
        return loaded

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # graphs are float32
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_samples_fit_

    def _weights(self, D: np.ndarray) -> np.ndarray:
        if self.mode == "connectivity":
            return np.ones_like(D)
        # An estimate of a distance near zero may fall below it.
        distances = np.maximum(1 - D if self.metric == "cosine" else D, 0)
        return np.sqrt(distances) if self.metric == "euclidean" else distances

    def _threads(self) -> int:
        return 0 if self.n_jobs in (None, -1) else check_integer(self.n_jobs, "n_jobs", 1)

    def _check_parameters(self) -> None:
        check_integer(self.n_neighbors, "n_neighbors", 1)
        if self.mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {self.mode!r}")
        if self.metric not in _INDEX_METRICS:
            raise ValueError(
                f"metric must be one of {', '.join(map(repr, _INDEX_METRICS))}, got {self.metric!r}"
            )
        self._threads()
