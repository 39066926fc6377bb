"""The store behind the integrations: replacement, filters, one complete state on disk, hostile files."""

import json
import threading

import numpy as np
import pytest

from tqann import IndexFileError
from tqann.integrations.records import RecordStore

D = 16


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((40, D)).astype(np.float32)


@pytest.fixture
def store(vectors):
    built = RecordStore({"bits": 4, "metric": "l2"})
    built.put([f"id {i}" for i in range(40)], vectors, [{"n": i} for i in range(40)])
    return built


def nearest(store, vector, **options):
    return [hit.id for hit in store.search(vector, 1, **options)]


def test_search_returns_id_distance_record_and_vector(store, vectors):
    hits = store.search(vectors[7], 3)
    assert len(hits) == 3
    assert hits[0].id == "id 7"
    assert hits[0].record == {"n": 7}
    assert hits[0].distance == pytest.approx(0, abs=1e-4)
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
    np.testing.assert_array_equal(hits[0].vector, store.index.reconstruct(7))
    assert len(store.search(vectors[7], 1000)) == 40
    assert store.search(vectors[7], 0) == []


def test_put_replaces_and_the_last_of_equal_ids_counts(store, vectors):
    store.put(["id 1", "new", "new"], -vectors[[1, 2, 3]], ["one", "gone", "kept"])
    assert len(store) == 41
    assert store.record("id 1") == "one"
    assert store.record("new") == "kept"
    assert nearest(store, -vectors[1]) == ["id 1"]
    assert nearest(store, -vectors[3]) == ["new"]
    assert nearest(store, -vectors[2]) != ["new"]
    assert store.index.ntotal == 41


def test_remove_and_clear(store, vectors):
    assert store.remove(["id 3", "id 3", "unknown"]) == 1
    assert "id 3" not in store
    assert nearest(store, vectors[3]) != ["id 3"]
    store.clear()
    assert len(store) == 0
    assert store.search(vectors[0], 5) == []
    store.put(["other"], np.ones((1, 3)), [None])  # other dimensions, fewer than an index takes
    assert nearest(store, [1, 1, 1]) == ["other"]
    assert store.search([1, 1, 1], 1)[0].vector.shape == (3,)


def test_keep_chooses_what_may_be_returned(store, vectors):
    assert nearest(store, vectors[4], keep=lambda id_, record: record["n"] > 20) != ["id 4"]
    assert nearest(store, vectors[4], keep=lambda id_, record: id_ == "id 9") == ["id 9"]
    assert store.search(vectors[4], 1, keep=lambda id_, record: False) == []


@pytest.mark.parametrize(
    ("ids", "shape", "records", "message"),
    [
        (["a"], (2, D), [1, 2], "equally many"),
        (["a"], (1, D + 1), [1], "vectors must have d = 16"),
        (["a"], (1, D, 1), [1], r"vectors must be of shape \[n, d\]"),
    ],
)
def test_bad_put_changes_nothing(store, ids, shape, records, message):
    with pytest.raises(ValueError, match=message):
        store.put(ids, np.ones(shape), records)
    assert len(store) == store.index.ntotal == 40


def test_options_are_checked_at_once():
    with pytest.raises(ValueError, match="bits must"):
        RecordStore({"bits": 9})
    with pytest.raises(ValueError, match="d must be left out"):
        RecordStore({"d": 16})


def test_saved_store_is_the_same(store, vectors, tmp_path):
    store.put(["café"], vectors[:1] + 1, [{"text": "naïve ☕", "list": [1, None, True]}])
    store.remove(["id 0"])
    store.save(tmp_path / "deep" / "store.json")
    loaded = RecordStore.load(tmp_path / "deep" / "store.json")
    assert loaded.ids() == store.ids()
    assert loaded.record("café") == store.record("café")
    for query in vectors[:5]:
        assert str(loaded.search(query, 5)) == str(store.search(query, 5))
    for both in (store, loaded):
        both.put(["later"], vectors[5:6], [0])
    assert loaded.index.ids.tolist() == store.index.ids.tolist()


def test_empty_store_can_be_saved(tmp_path):
    RecordStore({"metric": "ip"}).save(tmp_path / "store.json")
    loaded = RecordStore.load(tmp_path / "store.json")
    loaded.put(["a"], np.ones((1, 100)), [1])
    assert loaded.index.metric == "ip"


def test_one_complete_state_is_always_there(store, tmp_path, monkeypatch):
    path = tmp_path / "store.json"
    store.save(path)
    before = path.read_text("utf-8")
    store.remove(["id 5"])
    monkeypatch.setattr(
        "os.replace", fail := FailAt(2)
    )  # the index takes its name first, the JSON file second
    with pytest.raises(OSError, match="no space"):
        store.save(path)
    assert fail.calls == 2
    monkeypatch.undo()
    assert path.read_text("utf-8") == before
    assert len(list(tmp_path.iterdir())) == 2
    assert len(RecordStore.load(path)) == 40
    store.save(path)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(RecordStore.load(path)) == 39


class FailAt:
    def __init__(self, call):
        from os import replace

        self.replace, self.call, self.calls = replace, call, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == self.call:
            raise OSError("no space")
        return self.replace(*arguments)


def test_record_that_json_cannot_hold_leaves_the_file(store, tmp_path):
    store.save(tmp_path / "store.json")
    store.put(["bad"], np.ones((1, D)), [{1, 2}])
    with pytest.raises(TypeError, match="set"):
        store.save(tmp_path / "store.json")
    assert len(RecordStore.load(tmp_path / "store.json")) == 40


def changed(**items):
    return lambda data: data.update(items)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(format="other"), "not a tqann-records file"),
        (changed(version=2), "version must be 1, got 2"),
        (changed(index="../store-0123456789abcdef.tqann"), "index must name a file beside"),
        (changed(index="/etc/passwd"), "index must name a file beside"),
        (changed(index=None), "index must name a file beside"),
        (lambda data: data["records"].pop(), "its records are not those of its index"),
        (lambda data: data["records"].append(["x", 1000, None]), "its records are not those of its index"),
        (lambda data: data["records"].append(data["records"][0]), "twice"),
        (lambda data: data["records"].append([1, 2, 3]), "string, integer"),
        (changed(dimensions=17), "dimensions must be those of its index"),
        (changed(dimensions=None), "dimensions must be a number"),
        (changed(next_key=3), "next_key must be above"),
        (changed(options={"bits": "rm"}), "damaged"),
        (changed(records=7), "damaged"),
        (lambda data: data.pop("next_key"), "damaged"),
    ],
)
def test_damaged_files_are_refused(store, tmp_path, damage, message):
    path = tmp_path / "store.json"
    store.save(path)
    data = json.loads(path.read_text("utf-8"))
    damage(data)
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(IndexFileError, match=message):
        RecordStore.load(path)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_files_of_another_kind_are_refused(tmp_path, data):
    (tmp_path / "store.json").write_bytes(data)
    with pytest.raises(IndexFileError):
        RecordStore.load(tmp_path / "store.json")


def test_searches_beside_changes(store, vectors):
    failures, done = [], threading.Event()

    def ask():
        while not done.is_set():
            hits = store.search(vectors[11], 5)
            if hits[0].id != "id 11":
                failures.append(hits)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        names = [f"{turn} {i}" for i in range(20)]
        store.put(names, vectors[:20] + 3, [None] * 20)
        store.remove(names[::2])
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(store) == 40 + 30 * 10
