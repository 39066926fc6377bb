"""Indexes and vectors that the tests of tqann share."""

import numpy as np
import pytest

from tqann import TurboQuantIndex

D = 24


@pytest.fixture
def vectors():
    return np.random.default_rng(7).standard_normal((150, D)).astype(np.float32)


@pytest.fixture
def queries():
    return np.random.default_rng(8).standard_normal((5, D)).astype(np.float32)


@pytest.fixture(params=["l2", "ip", "cosine"])
def metric(request):
    return request.param


@pytest.fixture
def index(metric, vectors):
    """150 vectors with the ids 0 to 149."""
    built = TurboQuantIndex(D, 4, metric)
    built.add(vectors)
    return built


@pytest.fixture
def sparse_index(metric, vectors):
    """100 vectors whose ids are not their positions: given ones, and a gap left by a removal."""
    built = TurboQuantIndex(D, 4, metric)
    built.add_with_ids(vectors[:100], np.arange(100) * 7 + 3)
    built.add(vectors[100:])
    built.remove_ids(built.ids[20:70])
    return built


@pytest.fixture
def state():
    """A function that returns all of an index that a caller can observe, to be compared before and after."""

    def observe(index):
        decoded = index.reconstruct_batch(index.ids)
        probe = np.ones((1, index.d), dtype=np.float32)
        found = index.search(probe, max(index.ntotal, 1))
        return [index.ntotal, index.ids, decoded, *found, index._vectors.id_map.next_id]

    return observe
