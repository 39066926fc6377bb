"""tqann in ann-benchmarks: a flat scan of compressed codes, for angular and Euclidean distances."""

import numpy as np

from tqann import TurboQuantIndex

from ..base.module import BaseANN

METRICS = {"angular": "cosine", "euclidean": "l2"}


class TurboQuant(BaseANN):
    """A code of `bits` per dimension, ordered by a second one of `refine_bits` where this is given."""

    def __init__(self, metric, bits, plan="oblivious", refine_bits=None):
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        self._options = {"bits": bits, "metric": METRICS[metric], "plan": plan, "refine_bits": refine_bits}
        self._index = None
        self.name = f"TurboQuant({self._options})"

    def fit(self, X):
        self._index = TurboQuantIndex(X.shape[1], **self._options)
        self._index.add(np.asarray(X, dtype=np.float32))

    def set_query_arguments(self, refine_factor):
        self._index.refine_factor = refine_factor
        self.name = f"TurboQuant({self._options}, refine_factor={refine_factor})"

    def query(self, q, n):
        return self._found(np.asarray(q, dtype=np.float32)[None], n)[0]

    def batch_query(self, X, n):
        self.res = self._found(np.asarray(X, dtype=np.float32), n)

    def get_batch_results(self):
        return self.res

    def get_memory_usage(self):
        return None if self._index is None else self._index.nbytes() / 1024

    def get_additional(self):
        return {"code_size": self._index.code_size}

    def _found(self, queries, n):
        labels = self._index.search(queries, n)[1]
        return [row[row >= 0] for row in labels]
