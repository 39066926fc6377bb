"""Bytes held for each vector, and how often growing copies them."""

import tracemalloc

import numpy as np
import pytest

from tqann import TurboQuantIndex
from tqann.id_map import IdMap
from tqann.storage import CodeStorage, grown, removal_moves


def bound(index, id_bytes=0):
    return 8 + 1.05 * (index.code_size + id_bytes)


@pytest.mark.parametrize(
    ("d", "bits", "metric"), [(64, 1, "l2"), (100, 2.5, "ip"), (384, 4, "l2"), (384, 0.5, "cosine")]
)
def test_small_adds_stay_within_the_bound(d, bits, metric):
    index = TurboQuantIndex(d, bits, metric)
    codes = index.sa_encode(np.random.default_rng(0).standard_normal((1000, d)).astype(np.float32))
    for _ in range(60):
        index.add_sa_codes(codes)
        assert index.nbytes() <= bound(index) * index.ntotal


def test_nbytes_is_what_was_allocated():
    quantizer_and_kernels = TurboQuantIndex(128, 4)
    x = np.random.default_rng(0).standard_normal((1000, 128)).astype(np.float32)
    quantizer_and_kernels.add(x)
    tracemalloc.start()
    try:
        index = TurboQuantIndex(128, 4)
        fixed = tracemalloc.get_traced_memory()[0]
        for _ in range(30):
            index.add(x)
        held = tracemalloc.get_traced_memory()[0] - fixed
    finally:
        tracemalloc.stop()
    assert held <= bound(index) * index.ntotal
    assert held == pytest.approx(index.nbytes(), rel=0.01)


def test_own_ids_cost_eight_bytes():
    index = TurboQuantIndex(64, 4)
    codes = index.sa_encode(np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32))
    for step in range(40):
        index.add_sa_codes(codes, np.arange(1000) + 5000 * (step + 1))
        assert index.nbytes() <= bound(index, id_bytes=8) * index.ntotal


def test_one_at_a_time_copies_each_row_a_bounded_number_of_times(monkeypatch):
    sizes = []
    resize = CodeStorage._resize

    def counted(self, capacity):
        sizes.append(capacity)
        resize(self, capacity)

    monkeypatch.setattr(CodeStorage, "_resize", counted)
    index = TurboQuantIndex(16, 4)
    codes = index.sa_encode(np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32))
    for _ in range(20_000):
        index.add_sa_codes(codes)
    assert sum(sizes) <= 34 * index.ntotal
    assert index.nbytes() <= bound(index) * index.ntotal


def test_growth_is_geometric_at_every_size():
    for capacity in (0, 16, 1024, 2048, 100_000, 10**9):
        larger = grown(capacity, capacity + 1)
        assert larger % 16 == 0
        assert larger >= capacity + max(capacity // 32, 64)
        assert larger <= capacity + max(capacity // 32, 64) + 16
    assert grown(1000, 2000) == 2000
    assert grown(64, 64) == 64


def test_removal_gives_memory_back():
    index = TurboQuantIndex(64, 4)
    index.add(np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32))
    full = index.nbytes()
    index.remove_ids(np.arange(1000, 20_000))
    assert index.nbytes() < full / 10
    index.reset()
    assert index.nbytes() == 0


def test_removing_one_at_a_time_moves_one_row_each(monkeypatch):
    moved = []
    remove = CodeStorage.remove

    def counted(self, holes, movers, n):
        moved.append(len(holes))
        remove(self, holes, movers, n)

    monkeypatch.setattr(CodeStorage, "remove", counted)
    index = TurboQuantIndex(16, 4)
    index.add(np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32))
    for i in range(1500):
        assert index.remove_ids([i]) == 1
    assert max(moved) == 1
    assert sorted(index.ids) == list(range(1500, 2000))


def test_ids_at_their_own_positions_need_no_map():
    index = TurboQuantIndex(16, 4, "ip")
    index.add(np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32))
    index.remove_ids(np.arange(10))
    assert index.nbytes() <= bound(index, id_bytes=8) * index.ntotal
    assert index.copy().remove_ids([4999]) == 1


def test_an_id_map_agrees_with_a_dictionary():
    rng = np.random.default_rng(1)
    for own in (False, True):
        ids, rows = IdMap(), []
        for step in range(300):
            if not rows or rng.random() < 0.5:
                count = int(rng.integers(1, 9))
                new = np.array(
                    ids.fresh(count) if ids.fresh(count) is not None else len(rows) + np.arange(count)
                )
                if own and step % 3 == 0:
                    new = new[::-1] + int(rng.integers(0, 5))
                ids.append(count, new)
                rows += new.tolist()
            else:
                wanted = rng.integers(-2, ids.next_id + 2, rng.integers(1, 9))
                positions = ids.present(wanted)
                assert positions.tolist() == sorted({rows.index(i) for i in wanted.tolist() if i in rows})
                if len(positions):
                    holes, movers = removal_moves(ids.n, positions)
                    ids.remove(positions, holes, movers)
                    for hole, mover in zip(holes.tolist(), movers.tolist(), strict=True):
                        rows[hole] = rows[mover]
                    del rows[ids.n :]
            ids = ids.copy() if step % 50 == 49 else ids
            known = np.arange(ids.next_id + 2)
            at = {name: row for row, name in enumerate(rows)}
            assert ids.find(known).tolist() == [at.get(i, -1) for i in known.tolist()]


@pytest.mark.parametrize(
    "positions", [[], [0], [9], [0, 9], [3, 4, 5], list(range(10)), [7, 8, 9], [0, 1, 2, 8]]
)
def test_removal_moves_fill_every_hole(positions):
    positions = np.array(positions, dtype=np.int64)
    holes, movers = removal_moves(10, positions)
    rows = np.arange(10)
    rows[holes] = rows[movers]
    assert sorted(rows[: 10 - len(positions)]) == sorted(set(range(10)) - set(positions.tolist()))


def test_a_search_under_way_keeps_its_blocks():
    """Growing while something else holds the array must not pull the memory away."""
    index = TurboQuantIndex(16, 4, "ip")
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    index.add(x)
    held = index._vectors.storage.codes
    before = held.copy()
    index.add(np.repeat(x, 40, axis=0))
    np.testing.assert_array_equal(held, before)
    assert index._vectors.storage.codes is not held
