"""Random sequences of operations against a model: ids to decoded codes, searched by brute force."""

import copy
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tqann import SearchParameters, TurboQuantIndex

D = 16
POOL = (
    np.random.default_rng(21).standard_normal((40, D)).astype(np.float32) * np.linspace(0.5, 2, 40)[:, None]
)
POOL = POOL.astype(np.float32)
QUERIES = np.random.default_rng(22).standard_normal((3, D)).astype(np.float32)
WORST = float(np.finfo(np.float32).max)
KINDS = [
    ("l2", 4, "chain"),
    ("ip", 2, "chain"),
    ("cosine", 2.5, "chain"),
    ("l2", 3, "mse"),
    ("ip", 3, "prod"),
]

REFINED = [("l2", 1, 4), ("ip", 0.5, 2), ("cosine", 1, 3)]  # metric, bits, refine_bits

members = st.lists(st.integers(0, len(POOL) - 1), max_size=20)


def table(index):
    """float64 [nq, pool]: distances of the queries to the decoded pool, by the definitions alone."""
    return scores_of(index, index.sa_encode(POOL))


def scores_of(index, codes):
    """The same for rows of `sa_encode`; the squared norm of the finer code, if there is one, comes last."""
    decoded = index.sa_decode(codes).astype(np.float64)
    q = QUERIES.astype(np.float64)
    if index.metric == "cosine":
        q /= np.linalg.norm(q, axis=1, keepdims=True)
    products = q @ decoded.T
    if index.metric != "l2":
        return products
    norms = np.ascontiguousarray(codes[:, -4:]).view("<f4")[:, 0].astype(np.float64)
    return np.maximum((q * q).sum(axis=1)[:, None] + norms - 2 * products, 0)


@pytest.mark.parametrize(("metric", "bits", "code"), KINDS)
def test_the_pool_has_no_close_calls(metric, bits, code):
    """Equal scores come from equal vectors only, so that no order is a matter of rounding."""
    scores = np.sort(table(TurboQuantIndex(D, bits, metric, code=code)), axis=1)
    assert np.diff(scores, axis=1).min() > 1e-4


@pytest.mark.parametrize(("metric", "bits", "finer"), REFINED)
def test_the_pool_has_no_close_calls_by_either_code(metric, bits, finer):
    for index in (
        TurboQuantIndex(D, bits, metric),
        TurboQuantIndex(D, bits, metric, refine_bits=finer),
    ):
        assert np.diff(np.sort(table(index), axis=1)).min() > 1e-5


class Operations(RuleBasedStateMachine):
    """`content` maps each id to its member of the pool; `next_id` is what `add` must give next."""

    @initialize(kind=st.sampled_from(KINDS))
    def start(self, kind):
        self.begin(*kind)

    def begin(self, metric, bits, code, **options):
        self.make = lambda: TurboQuantIndex(D, bits, metric, code=code, **options)
        self.index = self.make()
        self.table = table(self.index)
        scores = np.sort(self.table, axis=None)
        # Halfway between scores that differ clearly: whether one is inside is no matter of rounding.
        self.radii = ((scores[1:] + scores[:-1]) / 2)[np.diff(scores) > 1e-3].tolist()
        self.decoded = self.index.sa_decode(self.index.sa_encode(POOL))
        self.content, self.next_id = {}, 0

    def note(self, ids, chosen):
        self.content.update(zip(ids, chosen, strict=True))
        if len(chosen):
            self.next_id = max(self.next_id, max(ids) + 1)

    @rule(chosen=members)
    def add(self, chosen):
        self.index.add(POOL[chosen])
        self.note(range(self.next_id, self.next_id + len(chosen)), chosen)

    @rule(chosen=members)
    def add_codes(self, chosen):
        self.index.add_sa_codes(self.index.sa_encode(POOL[chosen]))
        self.note(range(self.next_id, self.next_id + len(chosen)), chosen)

    @rule(chosen=members, data=st.data())
    def add_with_ids(self, chosen, data):
        ids = data.draw(
            st.lists(st.integers(0, 300), unique=True, min_size=len(chosen), max_size=len(chosen))
        )
        if set(ids) & self.content.keys():
            with pytest.raises(ValueError, match="ids must not be in the index"):
                self.index.add_with_ids(POOL[chosen], ids)
            return
        self.index.add_with_ids(POOL[chosen], ids)
        self.note(ids, chosen)

    @rule(data=st.data())
    def remove(self, data):
        known = st.sampled_from(sorted(self.content)) if self.content else st.nothing()
        ids = data.draw(st.lists(known | st.integers(0, 400), max_size=25))
        gone = set(ids) & self.content.keys()
        assert self.index.remove_ids(ids) == len(gone)
        for i in gone:
            del self.content[i]

    @rule(data=st.data())
    def remove_last(self, data):
        count = data.draw(st.integers(0, len(self.content)))
        for i in self.index.ids[len(self.content) - count :].tolist():
            assert self.index.remove_ids([i]) == 1
            del self.content[i]

    @rule(chosen=members)
    def merge_numbered(self, chosen):
        other = self.make()
        other.add(POOL[chosen])
        self.index.merge_from(other)
        self.note(range(self.next_id, self.next_id + len(chosen)), chosen)
        assert other.ntotal == 0

    @rule(chosen=members, shift=st.integers(0, 50))
    def merge_with_ids(self, chosen, shift):
        other = self.make()
        ids = [self.next_id + 2 * j + 1 for j in range(len(chosen))][::-1]
        other.add_with_ids(POOL[chosen], ids)
        self.index.merge_from(other, shift)
        # An empty index numbers as `add` would, and so do ids that happen to be 0, 1, 2, ... .
        self.note([i + shift for i in ids], chosen)

    @rule(mmap=st.booleans())
    def save_and_load(self, mmap):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index.tqann"
            self.index.save(path)
            self.index = TurboQuantIndex.load(path, mmap=mmap)

    @rule(
        duplicate=st.sampled_from(
            [TurboQuantIndex.copy, copy.deepcopy, lambda i: pickle.loads(pickle.dumps(i))]
        )
    )
    def copy(self, duplicate):
        original, self.index = self.index, duplicate(self.index)
        original.add(POOL[:3])
        original.reset()

    @precondition(lambda self: len(self.content) > 60)
    @rule()
    def reset(self):
        self.index.reset()
        self.content, self.next_id = {}, 0

    def expected(self, row, allowed):
        sign = 1 if self.index.metric == "l2" else -1
        return sorted(
            (sign * self.table[row, member], i) for i, member in self.content.items() if i in allowed
        )

    def best(self, row, allowed, k):
        return self.expected(row, allowed)[:k]

    def draw_filter(self, data):
        kind = data.draw(st.sampled_from(["none", "ids", "mask"]))
        if kind == "none":
            return None, set(self.content)
        ids = data.draw(st.sets(st.integers(0, 400), max_size=60))
        if kind == "ids":
            return sorted(ids), ids
        mask = np.zeros(401, dtype=bool)
        mask[list(ids)] = True
        return SearchParameters(sel=mask, threads=1), ids

    @rule(k=st.integers(1, 70), data=st.data())
    def search(self, k, data):
        params, allowed = self.draw_filter(data)
        distances, labels = self.index.search(QUERIES, k, params=params)
        sign = 1 if self.index.metric == "l2" else -1
        for row in range(len(QUERIES)):
            best = self.best(row, allowed, k)
            assert labels[row].tolist() == [i for _, i in best] + [-1] * (k - len(best))
            values = [sign * s for s, _ in best] + [sign * WORST] * (k - len(best))
            np.testing.assert_allclose(distances[row], values, rtol=1e-4, atol=1e-4)

    @rule(rank=st.integers(0, 200), data=st.data())
    def range_search(self, rank, data):
        params, allowed = self.draw_filter(data)
        sign = 1 if self.index.metric == "l2" else -1
        radius = self.radii[rank % len(self.radii)]
        lims, _, labels = self.index.range_search(QUERIES, radius, params=params)
        for row in range(len(QUERIES)):
            inside = [i for s, i in self.expected(row, allowed) if s < sign * radius]
            assert labels[int(lims[row]) : int(lims[row + 1])].tolist() == inside

    @invariant()
    def holds_the_content(self):
        if not hasattr(self, "index"):
            return
        ids = self.index.ids
        assert len(self.index) == len(ids) == len(self.content)
        assert set(ids.tolist()) == self.content.keys()
        if len(ids):
            members = [self.content[i] for i in ids.tolist()]
            np.testing.assert_array_equal(self.index.reconstruct_batch(ids), self.decoded[members])


class RefinedOperations(Operations):
    """The same with a finer code: the first one, whose scores are `coarse`, chooses the candidates."""

    @initialize(kind=st.sampled_from(REFINED), factor=st.integers(1, 4))
    def start(self, kind, factor):
        metric, bits, finer = kind
        self.begin(metric, bits, "chain", refine_bits=finer)
        self.coarse = table(TurboQuantIndex(D, bits, metric))
        self.factor = factor
        self.index.refine_factor = factor

    def best(self, row, allowed, k):
        sign = 1 if self.index.metric == "l2" else -1
        ordered = sorted((sign * self.coarse[row, m], i) for i, m in self.content.items() if i in allowed)
        wanted = min(self.factor * min(k, len(self.content)), len(self.content))
        return self.expected(row, {i for _, i in ordered[:wanted]})[:k]

    @rule(factor=st.integers(1, 4))
    def set_factor(self, factor):
        self.factor = self.index.refine_factor = factor

    @invariant()
    def keeps_the_factor(self):
        if hasattr(self, "index"):
            assert self.index.refine_factor == self.factor


TestOperations = Operations.TestCase
TestRefinedOperations = RefinedOperations.TestCase
TestOperations.settings = TestRefinedOperations.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
