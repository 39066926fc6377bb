"""The journal behind an index file: its bytes, files cut anywhere, damaged and hostile ones, files of every version."""

# ruff: noqa: E741 - D and I are the names that FAISS gives its results

import pickle
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import tqann.io
from tqann import IndexFileError, TurboQuantIndex, read_index
from tqann.io import from_bytes, to_bytes
from tqann.journal import FRAME_HEADER, JOURNAL_HEADER, Frame, pack_frame, parse_frame
from tqann.storage import CodeStorage

GOLDEN = Path(__file__).parent.parent / "golden"
FRAME = struct.Struct("<8s16sQIIQQQQQdd24sII")
FIELDS = ["magic", "salt", "sequence", "previous", "stored", "ntotal", "next_id", "low", "moved", "factor"]
FIELDS += ["error", "baseline", "reserved", "body", "checksum"]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """(file, bytes of the index, where its frame ends) after each of four syncs."""
    path = tmp_path_factory.mktemp("journal") / "index.tqann"
    x = np.random.default_rng(5).standard_normal((30, 8)).astype(np.float32)
    index = TurboQuantIndex(8, 4)
    index.add(x[:9])
    states = []
    for change in (
        lambda: None,
        lambda: index.add(x[9:12]),
        lambda: index.remove_ids([1, 4, 11]),
        lambda: index.add_with_ids(x[:5], [100, 50, 70, 90, 80]),
    ):
        change()
        index.sync(path)
        states.append((path.read_bytes(), to_bytes(index), path.stat().st_size))
    return states


def test_layout(history):
    data = history[-1][0]
    assert data[:12] == b"\x93TQANN\r\n" + struct.pack("<I", 2)
    start = history[0][2] - JOURNAL_HEADER
    assert data[: start + JOURNAL_HEADER] == history[0][0]
    assert data[start : start + 16] == b"\x93TQLOG\r\n" + struct.pack("<II", 1, 0)
    assert data[start + 32 : start + 36] == data[16:20]
    assert data[start + 60 : start + 64] == struct.pack("<I", zlib.crc32(data[start : start + 60]))
    previous = data[start + 60 : start + 64]
    expected = [(0, 12, 12, 9, 0), (1, 9, 12, 9, 2), (1, 14, 101, 9, 0)]
    for number, (stored, ntotal, next_id, low, moved) in enumerate(expected, 1):
        at, end = history[number - 1][2], history[number][2]
        assert at % 64 == 0
        frame = dict(zip(FIELDS, FRAME.unpack(data[at : at + FRAME_HEADER]), strict=True))
        assert frame["magic"] == b"\x93TQFRM\r\n"
        assert frame["salt"] == data[start + 16 : start + 32]
        assert (frame["sequence"], frame["stored"], frame["factor"]) == (number, stored, 0)
        assert [frame[name] for name in ("ntotal", "next_id", "low", "moved")] == [
            ntotal,
            next_id,
            low,
            moved,
        ]
        assert struct.pack("<I", frame["previous"]) == previous
        assert frame["body"] == zlib.crc32(data[at + FRAME_HEADER : end])
        assert frame["checksum"] == zlib.crc32(data[at : at + 124])
        previous = data[at + 124 : at + 128]
    # The second frame: positions, ids, scalars and codes of the two rows that moved.
    body, index = data[history[1][2] + FRAME_HEADER : history[2][2]], from_bytes(history[2][1])
    assert np.frombuffer(body[:16], "<i8").tolist() == [1, 4]
    assert np.frombuffer(body[16:32], "<i8").tolist() == index.ids[[1, 4]].tolist()
    scalars, codes = np.frombuffer(body[32:48], "<f4").reshape(2, 2), np.frombuffer(body[48:56], np.uint8)
    storage = index._vectors.storage
    np.testing.assert_array_equal(scalars, storage.scalars_at(np.array([1, 4])))
    np.testing.assert_array_equal(codes.reshape(2, 4), storage.rows(np.array([1, 4])))
    assert not any(body[56:])


def test_a_file_cut_anywhere(history, tmp_path):
    """It opens as of the last frame that is whole, and is refused before the first one may begin."""
    data, path = history[-1][0], tmp_path / "cut.tqann"
    for length in range(len(data)):
        cut = data[:length]
        whole = [state for _, state, end in history if end <= length]
        if not whole:
            with pytest.raises(IndexFileError):
                from_bytes(cut)
            continue
        assert to_bytes(from_bytes(cut)) == whole[-1]
        if length % 7 == 0:
            path.write_bytes(cut)
            index = read_index(path, mmap=True)
            assert to_bytes(index) == whole[-1]
            index.add(np.ones((1, 8), np.float32))
            index.sync(path)
            assert to_bytes(read_index(path)) == to_bytes(index)
            assert path.stat().st_size == index._attached.tail.end  # nothing of what was torn is left


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_was_read_is_appended_to(history, tmp_path, mmap):
    path = tmp_path / "read.tqann"
    for data, *_ in history:
        path.write_bytes(data)
        index = read_index(path, mmap=mmap)
        index.add(np.ones((1, 8), np.float32))
        index.sync(path)
        assert path.read_bytes().startswith(data)
        assert to_bytes(read_index(path)) == to_bytes(index)
    path.write_bytes(history[0][1])  # without a journal there is nothing to append to
    index = read_index(path, mmap=mmap)
    index.sync(path)
    assert to_bytes(read_index(path)) == history[0][1]
    assert path.stat().st_size == history[0][2]


def test_mapping_reads_values_only_where_a_journal_has_changed_them(history, tmp_path, monkeypatch):
    looked = []
    check = tqann.io._check_values
    monkeypatch.setattr("tqann.io._check_values", lambda contents: (looked.append(1), check(contents)))
    path = tmp_path / "mapped.tqann"
    for number, (data, *_) in enumerate(history):
        path.write_bytes(data)
        read_index(path, mmap=True)
        assert len(looked) == number  # that of no change is not looked at
    read_index(path, mmap=True, verify=True)
    assert len(looked) == len(history)


@pytest.mark.parametrize("tail", [bytes(200), b"\xff" * 77, b"\x93TQFRM\r\n" * 40])
def test_what_an_interrupted_sync_left(history, tail):
    for data, state, _ in history:
        assert to_bytes(from_bytes(data + tail)) == state


def test_every_damaged_bit(history):
    """Damage before the last frame is refused; damage to the last one looks like an interrupted sync, or is refused."""
    data = history[-1][0]
    last = history[-2][2]
    rng = np.random.default_rng(3)
    for position in range(len(data)):
        mutant = bytearray(data)
        mutant[position] ^= 1 << rng.integers(0, 8)
        if position < last:
            with pytest.raises(IndexFileError):
                from_bytes(bytes(mutant))
        else:
            assert to_bytes(from_bytes(bytes(mutant))) == history[-2][1]


def test_frames_lost_or_doubled(history):
    data, ends = history[-1][0], [end for *_, end in history]
    frames = [data[a:b] for a, b in pairwise(ends)]
    head = data[: ends[0]]
    for order in ([1], [2], [0, 2], [1, 0], [0, 0], [0, 1, 1], [0, 1, 2, 2], [2, 1, 0]):
        with pytest.raises(IndexFileError):
            from_bytes(head + b"".join(frames[number] for number in order))
    other = bytearray(data)
    other[ends[0] - JOURNAL_HEADER + 16] ^= 1  # frames of another journal
    other[ends[0] - 4 : ends[0]] = struct.pack("<I", zlib.crc32(other[ends[0] - 64 : ends[0] - 4]))
    assert to_bytes(from_bytes(bytes(other))) == history[0][1]


def forged(history, number, body=None, **fields):
    """The file up to frame `number`, with false fields and body, signed as only a hostile writer would."""
    data, at, end = history[-1][0], history[number - 1][2], history[number][2]
    frame = dict(zip(FIELDS, FRAME.unpack(data[at : at + FRAME_HEADER]), strict=True)) | fields
    body = data[at + FRAME_HEADER : end] if body is None else body
    frame["body"] = zlib.crc32(body)
    header = FRAME.pack(*frame.values())[:-4]
    return data[:at] + header + struct.pack("<I", zlib.crc32(header)) + body


def test_signed_frames_with_false_fields(history):
    for number in (1, 2, 3):
        assert to_bytes(from_bytes(forged(history, number))) == history[number][1]
    false = [{name: value} for name in ("sequence", "previous") for value in (0, 7, 2**32 - 1)]
    false += [{name: 2**63} for name in ("ntotal", "low", "moved", "factor")]
    false += [{"low": low} for low in (10, 13, 2**40)]
    false += [{"next_id": value} for value in (0, 5, 8, 2**63 + 1, 2**64 - 1)]
    false += [{"stored": 2}, {"factor": 1}, {"reserved": b"x" * 24}, {"moved": 10}]
    false += [{name: value} for name in ("error", "baseline") for value in (-1.0, np.nan, np.inf)]
    for fields in false:
        with pytest.raises(IndexFileError):
            from_bytes(forged(history, 2, **fields))
    with pytest.raises(IndexFileError, match="low of the frame 1"):
        from_bytes(forged(history, 1, ntotal=14, next_id=14, low=11))
    with pytest.raises(IndexFileError, match="no ids"):
        from_bytes(forged(history, 3, bytes(64), stored=0, moved=0))


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (0, struct.pack("<q", 4), "positions"),
        (0, struct.pack("<q", -1), "positions"),
        (8, struct.pack("<q", 9), "positions"),
        (0, struct.pack("<qq", 2**63 - 1, -(2**62)), "positions"),
        (16, struct.pack("<q", -5), "ids"),
        (16, struct.pack("<q", 0), "ids"),
        (16, struct.pack("<q", 12), "ids"),
        (32, struct.pack("<f", np.nan), "scalars"),
        (60, b"x", "not zero"),
    ],
)
def test_signed_frames_with_false_bodies(history, tmp_path, offset, value, match):
    body = bytearray(history[2][0][history[1][2] + FRAME_HEADER :])
    body[offset : offset + len(value)] = value
    (tmp_path / "forged").write_bytes(forged(history, 2, bytes(body)))
    for mmap in (False, True):
        with pytest.raises(IndexFileError, match=match):
            read_index(tmp_path / "forged", mmap=mmap)


def test_sizes_are_checked_before_anything_is_allocated(history, monkeypatch):
    data = forged(history, 1, ntotal=2**40, next_id=2**40)
    original = CodeStorage.reserve

    def reserve(self, needed):
        assert needed < 100
        return original(self, needed)

    monkeypatch.setattr(CodeStorage, "reserve", reserve)
    assert to_bytes(from_bytes(data)) == history[0][1]  # a frame longer than the file was never complete


@pytest.mark.parametrize("options", [{"rotation": "haar"}, {"code": "prod", "sketch": "gaussian"}])
def test_reading_makes_no_matrix(options, monkeypatch):
    """A header of some hundred bytes must not cost d x d numbers before a vector is asked for."""

    def no_matrix(*arguments):
        raise AssertionError("a matrix was made")

    monkeypatch.setattr("tqcore.rotation.gaussian_matrix", no_matrix)
    monkeypatch.setattr("tqcore.prod.gaussian_matrix", no_matrix)
    data = to_bytes(TurboQuantIndex(65536, 4, **options))
    assert len(data) < 1000
    assert from_bytes(data).d == 65536


def test_other_journals(history):
    data, end = bytearray(history[0][0]), history[0][2]

    def signed(offset, value):
        other = bytearray(data)
        other[end - 64 + offset : end - 64 + offset + len(value)] = value
        other[end - 4 :] = struct.pack("<I", zlib.crc32(other[end - 64 : end - 4]))
        return bytes(other)

    with pytest.raises(IndexFileError, match="journal version must be 1, got 2"):
        from_bytes(signed(8, struct.pack("<I", 2)))
    for offset in (12, 32, 36, 59):
        with pytest.raises(IndexFileError, match="not that of this file"):
            from_bytes(signed(offset, b"\x77"))
    with pytest.raises(IndexFileError, match="no journal"):
        from_bytes(bytes(data[:-64]))
    with pytest.raises(IndexFileError, match="format version must be 1 or 2, got 3"):
        from_bytes(bytes(data[:8]) + b"\x03" + bytes(data[9:]))


def test_frames_are_packed_as_they_are_parsed():
    frame = Frame(3, 7, True, 9, 20, 4, 2, 5, 0.5, 2.0, 99)
    assert parse_frame(pack_frame(frame, b"s" * 16), b"s" * 16) == frame
    assert parse_frame(pack_frame(frame, b"s" * 16), b"t" * 16) is None


def test_pickles_hold_no_journal(history):
    index = from_bytes(history[-1][0])
    assert to_bytes(pickle.loads(pickle.dumps(index))) == history[-1][1]


@pytest.mark.parametrize("name", ["ip_empty_journal", "l2_chain", "cosine_prod", "ip_plan", "l2_refined"])
@pytest.mark.parametrize("mmap", [False, True])
def test_golden_files(name, mmap):
    index = read_index(GOLDEN / f"v2_{name}.tqann", mmap=mmap, verify=True)
    with np.load(GOLDEN / f"v2_{name}.npz") as expected:
        np.testing.assert_array_equal(index.ids, expected["ids"])
        D, I = index.search(expected["queries"], 5)
        np.testing.assert_array_equal(I, expected["I"])
        np.testing.assert_allclose(D, expected["D"], rtol=1e-5, atol=1e-5)
        decoded = index.reconstruct_batch(index.ids)
        np.testing.assert_allclose(decoded, expected["decoded"], rtol=1e-5, atol=1e-5)
        assert repr(index) == str(expected["repr"])
