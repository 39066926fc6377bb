"""Index files: round trips, damaged and foreign files, files of every version."""

# ruff: noqa: E741 - D and I are the names that FAISS gives its results

import io
import json
import pickle
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tqann import IndexFileError, TurboQuantIndex, read_index, write_index
from tqann.io import from_bytes, to_bytes

GOLDEN = Path(__file__).parent.parent / "golden"


def equal(a, b):
    assert repr(a) == repr(b)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.reconstruct_batch(a.ids), b.reconstruct_batch(b.ids))
    probe = np.linspace(-1, 1, 2 * a.d, dtype=np.float32).reshape(2, a.d)
    for x, y in zip(a.search(probe, 9), b.search(probe, 9), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.tqann"


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("kind", ["index", "sparse_index"])
def test_round_trip(request, metric, kind, mmap, path, vectors):
    index = request.getfixturevalue(kind)
    index.save(path)
    loaded = TurboQuantIndex.load(path, mmap=mmap)
    equal(index, loaded)
    content = path.read_bytes()
    for change in (
        lambda i: i.add(vectors[:3]),
        lambda i: i.remove_ids(i.ids[5:40]),
        lambda i: i.add_with_ids(vectors[:2], [10**6, 10**6 + 1]),
        lambda i: i.add(vectors[:1]),
    ):
        change(index)
        change(loaded)
        equal(index, loaded)
    assert path.read_bytes() == content
    loaded.save(path)
    equal(read_index(path), index)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17])
def test_small_indexes(n, mmap, path, vectors):
    index = TurboQuantIndex(24, 2.5, "ip")
    index.add(vectors[:n])
    write_index(index, path)
    loaded = read_index(path, mmap=mmap, verify=True)
    equal(index, loaded)
    loaded.add(vectors[:40])
    assert loaded.ntotal == n + 40


def test_ids_go_on_after_loading(path, vectors):
    index = TurboQuantIndex(24)
    index.add(vectors)
    index.remove_ids(range(100, 150))
    index.save(path)
    for mmap in (False, True):
        loaded = read_index(path, mmap=mmap)
        loaded.add(vectors[:1])
        assert loaded.ids[-1] == 150


def test_a_mapped_index_holds_no_memory_and_survives_replacement(index, path, queries):
    index.save(path)
    mapped = read_index(path, mmap=True)
    before = mapped.search(queries, 5)
    assert mapped.nbytes() == 0
    TurboQuantIndex(8).save(path)
    for x, y in zip(mapped.search(queries, 5), before, strict=True):
        np.testing.assert_array_equal(x, y)
    twin = mapped.copy()
    twin.reset()
    assert mapped.ntotal == 150
    mapped.merge_from(pickle.loads(pickle.dumps(mapped)))
    assert mapped.ntotal == 300


def test_layout_of_version_1(index, metric, vectors):
    data = to_bytes(index)
    assert data[:12] == b"\x93TQANN\r\n" + struct.pack("<I", 1)
    length, checksum, reserved = struct.unpack("<III", data[12:24])
    header = json.loads(data[24 : 24 + length])
    assert zlib.crc32(data[:16] + data[24 : 24 + length]) == checksum
    assert reserved == 0
    assert header["quantizer"] == index.quantizer.config()
    assert (header["metric"], header["ntotal"], header["next_id"]) == (metric, 150, 150)
    start = -(-(24 + length) // 64) * 64
    codes = np.frombuffer(data[start : start + 150 * 12], np.uint8).reshape(150, 12)
    np.testing.assert_array_equal(codes, index.sa_encode(vectors)[:, :12])
    start = -(-(start + 150 * 12) // 64) * 64
    scalars = np.frombuffer(data[start:], "<f4").reshape(-1, 150)
    np.testing.assert_array_equal(scalars.T.copy().view(np.uint8), index.sa_encode(vectors)[:, 12:])
    assert list(header["checksums"]) == ["codes", "scalars"]
    assert header["checksums"]["scalars"] == f"{zlib.crc32(data[start:]):08x}"


@pytest.fixture(scope="module", params=[None, 6])
def small(request):
    """Bytes of a small index with ids, without and with a finer code."""
    x = np.random.default_rng(5).standard_normal((9, 8)).astype(np.float32)
    index = TurboQuantIndex(8, 4, refine_bits=request.param)
    index.add_with_ids(x, np.arange(9) * 1001)
    return to_bytes(index)


def refused(data):
    with pytest.raises(IndexFileError):
        from_bytes(data)


def test_ten_thousand_damaged_files(small, path):
    """No mutation loads, none crashes; with mmap the data may differ, and is then searched without harm."""
    rng = np.random.default_rng(11)
    mutants = [small[:length] for length in range(len(small))]
    for position in range(len(small)):
        for bit in rng.choice(8, size=4, replace=False):
            mutants.append(bytearray(small))
            mutants[-1][position] ^= 1 << bit
    foreign = rng.bytes(len(small))
    while len(mutants) < 10_500:
        a, b, c = (int(v) for v in rng.integers(0, len(small), size=3))
        length = int(rng.integers(1, 64))
        kind = len(mutants) % 5
        if kind == 0:
            mutant = small[:a] + small[b : b + length] + small[a + length :]
        elif kind == 1:
            mutant = small[:a] + small[a + length :]
        elif kind == 2:
            mutant = small[:a] + small[b : b + length] + small[a:]
        elif kind == 3:
            mutant = small[:a] + foreign[b : b + length] + small[a + length :]
        else:
            mutant = small[: min(a, b)] + bytes(length) + small[max(a, b) :] + foreign[:c]
        if mutant != small:
            mutants.append(mutant)
    probe = np.ones((1, 8), dtype=np.float32)
    opened = 0
    for number, mutant in enumerate(mutants):
        refused(bytes(mutant))
        if number % 5 == 0:
            path.write_bytes(mutant)
            with pytest.raises(IndexFileError):
                read_index(path, mmap=True, verify=True)
            try:
                mapped = read_index(path, mmap=True)
            except IndexFileError:
                continue
            opened += 1
            D, I = mapped.search(probe, 10)
            assert D.shape == I.shape == (1, 10)
            mapped.add(probe)
    assert len(mutants) >= 10_000
    assert opened > 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"IxF2" + bytes(200),
        pickle.dumps({"index": 1}),
        b"\x93TQANN\r\n",
        b"\x93TQANN\r\n" + b"\xff" * 16,
        b"\x93TQANN\r\n" + bytes(4000),
        b"PK\x03\x04" + bytes(64),
    ],
)
def test_foreign_files(content, path):
    path.write_bytes(content)
    for mmap in (False, True):
        with pytest.raises(IndexFileError):
            read_index(path, mmap=mmap)


def resigned(data, change):
    """A file with a header that `change` has changed, signed again as only a hostile writer would."""
    length = struct.unpack("<I", data[12:16])[0]
    header = json.loads(data[24 : 24 + length])
    text = change(header)
    text = text if isinstance(text, bytes) else json.dumps(header if text is None else text).encode()
    start = data[:12] + struct.pack("<I", len(text))
    body = data[-(-(24 + length) // 64) * 64 :]
    signed = start + struct.pack("<II", zlib.crc32(text, zlib.crc32(start)), 0) + text
    return signed + bytes(-len(signed) % 64) + body


def forgeries():
    def put(**fields):
        return lambda h: h.update(fields)

    def quantizer(**fields):
        return lambda h: h["quantizer"].update(fields)

    yield from (put(ntotal=n) for n in (-1, 8, 10, 2**40, 2**62, 2**70, 9.0, "9", None, True))
    yield from (put(next_id=n) for n in (-1, 3, 5000, 2**63 + 1, 1.5, None))
    yield from (put(metric=m) for m in ("ip", "dot", 1, None))
    yield from (put(checksums=c) for c in ({}, [], {"codes": 1}, {"codes": "0" * 8, "scalars": "0" * 8}))
    yield lambda h: h["checksums"].update(codes="xyz")
    yield lambda h: h["checksums"].update(codes="0000000G")
    yield lambda h: h.update(extra=1)
    yield lambda h: h.pop("metric") and None
    yield from (quantizer(d=d) for d in (7, 9, 2**40, 8.0, "8", None, True))
    yield from (quantizer(bits=b) for b in (0, 3, 9.25, "4", None, 1e308, [4], True))
    yield from (quantizer(code=c) for c in ("prod", "other", 1, None, ["chain"]))
    yield from (
        quantizer(**f) for f in ({"memory": 9}, {"memory": 2.0}, {"seed": -1}, {"seed": 0.5}, {"seed": False})
    )
    yield from (
        quantizer(**f)
        for f in ({"rotation": 3}, {"store_norm": False}, {"store_norm": 1}, {"normalize": True})
    )
    yield quantizer(unknown=1)
    yield put(quantizer=None)
    yield put(quantizer={})
    yield lambda h: []
    yield lambda h: 5
    yield lambda h: b"[" * 100_000
    yield lambda h: b"{"
    yield lambda h: b"\xff\xfe"
    yield lambda h: json.dumps(h).replace("9", "NaN").encode()


def test_signed_headers_with_false_content(small, path):
    equal(from_bytes(resigned(small, lambda h: None)), from_bytes(small))
    for number, change in enumerate(forgeries()):
        data = resigned(small, change)
        path.write_bytes(data)
        for read in (lambda data=data: from_bytes(data), lambda: read_index(path, mmap=True, verify=True)):
            try:
                read()
            except IndexFileError:
                continue
            assert number < 0, f"forgery {number} was read"


def test_sizes_are_checked_before_anything_is_allocated(small, monkeypatch):
    def no_allocation(*_):
        raise AssertionError("allocated for a file that is too short")

    monkeypatch.setattr("tqann.storage.CodeStorage.reserve", no_allocation)
    refused(resigned(small, lambda h: h.update(ntotal=2**33, next_id=2**33)))


@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 1, -1], [0, 1, 5000]])
def test_signed_data_with_false_ids(ids, vectors):
    index = TurboQuantIndex(24)
    index.add_with_ids(vectors[:3], [7, 8, 9])
    index._vectors.id_map._ids[:3] = ids
    with pytest.raises(IndexFileError, match="unique and from 0 to next_id - 1 = 9, but"):
        from_bytes(to_bytes(index))


def test_signed_data_with_false_scalars(index):
    index._vectors.storage.scalars[0, 3] = np.nan
    refused(to_bytes(index))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_signed_data_with_false_plans(value):
    index = TurboQuantIndex(24, plan="calibrated")
    index.add(
        np.random.default_rng(2).standard_normal((300, 24), dtype=np.float32)
        * 0.9 ** np.arange(24, dtype="f4")
    )
    for name in index.plan.arrays():
        changed = index.copy()
        damaged = {key: array.copy() for key, array in index.plan.arrays().items()}
        damaged[name].flat[-1] = value
        plan = replace(index.plan, **damaged)
        changed._vectors.quantizer = changed.quantizer.with_plan(plan)
        with pytest.raises(IndexFileError, match="plan must be finite"):
            from_bytes(to_bytes(changed))


def test_other_errors(index, path, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_index(path)
    with pytest.raises(OSError):
        read_index(tmp_path)
    with pytest.raises(FileNotFoundError):
        index.save(tmp_path / "missing" / "index.tqann")
    with pytest.raises(OSError):
        index.save(tmp_path)
    with pytest.raises(TypeError, match="index must be a TurboQuantIndex, got dict"):
        write_index({}, path)
    with pytest.raises(TypeError):
        index.save(5)
    assert list(tmp_path.iterdir()) == []


def test_codes_are_streamed(vectors, path, monkeypatch):
    index = TurboQuantIndex(24, 4, "ip")
    index.add(vectors)
    monkeypatch.setattr("tqann.io._CHUNK_BYTES", 12 * 48)
    index.save(path)
    equal(read_index(path), index)
    monkeypatch.undo()
    equal(read_index(path), index)


def test_bytes_written_do_not_depend_on_history(vectors, metric):
    one, two = TurboQuantIndex(24, metric=metric), TurboQuantIndex(24, metric=metric)
    one.add(vectors)
    for vector in vectors:
        two.add(vector[None])
    assert to_bytes(one) == to_bytes(two)
    assert to_bytes(from_bytes(to_bytes(one))) == to_bytes(one)


def test_an_unreadable_stream_is_an_error(index):
    class Short(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 1000))

    from tqann.io import _read

    data = to_bytes(index)
    with pytest.raises(IndexFileError, match="truncated"):
        _read(Short(data), len(data))


@pytest.mark.parametrize(
    "name", ["l2_chain", "ip_mse_ids", "cosine_prod", "l2_chain_m3_haar", "ip_plan", "l2_refined"]
)
@pytest.mark.parametrize("mmap", [False, True])
def test_golden_files(name, mmap):
    index = read_index(GOLDEN / f"v1_{name}.tqann", mmap=mmap, verify=True)
    with np.load(GOLDEN / f"v1_{name}.npz") as expected:
        np.testing.assert_array_equal(index.ids, expected["ids"])
        D, I = index.search(expected["queries"], 5)
        np.testing.assert_array_equal(I, expected["I"])
        np.testing.assert_allclose(D, expected["D"], rtol=1e-5, atol=1e-5)
        decoded = index.reconstruct_batch(index.ids)
        np.testing.assert_allclose(decoded, expected["decoded"], rtol=1e-5, atol=1e-5)
        assert repr(index) == str(expected["repr"])
