"""Syncing: the file opens as the index was, whatever happened in between, and takes only what has changed."""

import errno
import os
import pickle
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import tqann
from tqann import ConcurrentWriterError, DiskFullError, ReadOnlyPathError, TurboQuantIndex, read_index
from tqann.files import Disk, using_disk, writing
from tqann.io import to_bytes
from tqann.storage import Changes

KINDS = [{}, {"refine_bits": 6}, {"plan": "calibrated"}, {"metric": "ip", "code": "mse"}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.tqann"


@pytest.fixture
def synced(vectors, path):
    """An index of 100 vectors that was synced with `path`."""
    index = TurboQuantIndex(24, 4)
    index.add(vectors[:100])
    index.sync(path)
    return index


def beside(path):
    """Names of the other files in the folder."""
    return [name for name in os.listdir(path.parent) if name != path.name]


def lock_of(path):
    """Name of the lock's file."""
    with writing(str(path)):
        return beside(path)[0]


def assert_saved(index, path):
    for mmap in (False, True):
        loaded = read_index(path, mmap=mmap)
        assert to_bytes(loaded) == to_bytes(index)
        assert repr(loaded) == repr(index)
    return loaded


@pytest.mark.parametrize("options", KINDS)
def test_any_sequence_of_changes(options, vectors, path):
    rng = np.random.default_rng(1)
    index = TurboQuantIndex(24, 2, **options)
    index.add(vectors[:100])
    index.sync(path)
    assert_saved(index, path)
    for step in range(60):
        change = rng.integers(0, 6)
        if change < 2:
            index.add(vectors[: rng.integers(1, 50)])
        elif change == 2:
            index.remove_ids(rng.choice(index.ids, rng.integers(0, 40)))
        elif change == 3:
            index.add_with_ids(vectors[:3], index._vectors.id_map.next_id + np.array([7, 5, 9]))
        elif change == 4:
            index.remove_ids(index.ids[-5:])
        elif options.get("refine_bits"):
            index.refine_factor = int(rng.integers(1, 30))
        if step % 3 == 0:
            index.sync(path, compact=step % 24 == 0)
            loaded = assert_saved(index, path)
            if step % 5 == 0:
                index = loaded
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_sync_takes_what_has_changed(synced, vectors, path):
    row = synced.code_size
    size = path.stat().st_size
    for change, rows in [
        (lambda: synced.add(vectors[:10]), 10),
        (lambda: synced.remove_ids([3, 4]), 2),
        (lambda: synced.remove_ids(synced.ids[-4:]), 0),
        (lambda: synced.reconstruct(0), None),
        (lambda: synced.search(vectors[:2], 3), None),
    ]:
        change()
        synced.sync(path)
        grown = path.stat().st_size - size
        assert grown == (0 if rows is None else grown)
        assert grown <= (0 if rows is None else 128 + 64 + rows * (row + 16))
        size += grown
    assert_saved(synced, path)


def test_one_fsync_for_each_sync(synced, vectors, path):
    class Counting(Disk):
        def __init__(self):
            self.calls = []

        def fsync(self, descriptor):
            self.calls.append("fsync")
            super().fsync(descriptor)

        def replace(self, source, target):
            self.calls.append("replace")
            super().replace(source, target)

    synced.add(vectors)
    with using_disk(Counting()) as _:
        counting = tqann.files.disk()
        synced.sync(path)
        assert counting.calls == ["fsync"]
        synced.sync(path)
        assert counting.calls == ["fsync"]


def test_a_large_sync_is_streamed(synced, vectors, path, monkeypatch):
    monkeypatch.setattr("tqann.sync._CHUNK_BYTES", 400)
    monkeypatch.setattr("tqann.journal._CHUNK_BYTES", 640)
    synced.remove_ids(range(0, 90, 2))
    for _ in range(3):
        synced.add(vectors)
    synced.sync(path)
    assert_saved(synced, path)


def test_a_file_that_is_mostly_garbage_is_written_anew(path):
    index = TurboQuantIndex(64, 8, "ip")
    x = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    index.add(x)
    index.sync(path)
    sizes = []
    for _ in range(12):
        index.remove_ids(index.ids[:1000])
        index.add(x[:1000])
        index.sync(path)
        assert_saved(index, path)
        sizes.append(path.stat().st_size)
    fresh = len(to_bytes(index))
    assert max(sizes) <= 2 * fresh + (1 << 16)
    assert min(sizes[3:]) < 1.2 * fresh
    index.sync(path, compact=True)
    assert path.stat().st_size <= fresh + 128
    index.remove_ids(index.ids[100:])
    index.sync(path, compact=False)
    assert path.stat().st_size > fresh
    index.remove_ids([index.ids[0]])
    index.sync(path)
    assert path.stat().st_size < fresh / 10
    assert_saved(index, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda index, x: index.reset(),
        lambda index, x: (index.reset(), index.add(x)),
        lambda index, x: (index.remove_ids(index.ids), index.calibrate(x), index.add(x[:5])),
        lambda index, x: index.merge_from(pickle.loads(pickle.dumps(index))),
        lambda index, x: index.copy().merge_from(index),
        lambda index, x: index.add_sa_codes(index.sa_encode(x[:4])),
    ],
)
def test_every_kind_of_change(change, synced, vectors, path):
    change(synced, vectors)
    synced.sync(path)
    assert_saved(synced, path)
    synced.add(vectors[:2])
    synced.sync(path)
    assert_saved(synced, path)


def test_files_go_with_the_index(synced, vectors, path, tmp_path):
    other = tmp_path / "other.tqann"
    synced.sync(other)  # another file: written whole
    assert_saved(synced, other)
    synced.save(path)
    synced.add(vectors[:5])
    synced.sync(path)
    assert_saved(synced, path)
    path.unlink()
    synced.sync(path)
    assert_saved(synced, path)
    read_index(path).save(path)
    loaded = read_index(path)
    loaded.sync(path)  # of version 1 until now
    loaded.add(vectors[:1])
    loaded.sync(path)
    assert_saved(loaded, path)


def test_copies_are_no_writers_of_the_file(synced, vectors, path):
    copy = synced.copy()
    copy.add(vectors[:3])
    synced.sync(path)
    assert read_index(path).ntotal == 100
    assert copy._attached is None
    assert copy._vectors.id_map.changes is None


def test_two_writers(synced, vectors, path):
    other = read_index(path)
    other.add(vectors[:1])
    other.sync(path)
    synced.add(vectors[:2])
    with pytest.raises(ConcurrentWriterError, match="another writer has changed it"):
        synced.sync(path)
    assert_saved(other, path)
    synced.save(path)
    with pytest.raises(ConcurrentWriterError):
        other.sync(path)
    assert_saved(synced, path)
    synced.sync(path)
    synced.add(vectors[:2])
    synced.sync(path)
    assert_saved(synced, path)


def test_a_file_changed_in_place(synced, vectors, path, tmp_path):
    """The same file by its inode, and not what this index wrote."""
    content = path.read_bytes()
    synced.copy().sync(tmp_path / "twin.tqann")
    twin = (tmp_path / "twin.tqann").read_bytes()
    assert len(twin) == len(content)
    synced.add(vectors[:1])
    for changed in (twin, content[:-64], content[:-1], b""):
        with path.open("r+b") as file:
            file.write(changed)
            file.truncate()
        with pytest.raises(ConcurrentWriterError):
            synced.sync(path)
        assert path.read_bytes() == changed
    path.write_bytes(content)
    synced.sync(path)
    assert_saved(synced, path)


def test_the_lock_is_held_across_processes(synced, vectors, path):
    program = (
        "import sys\nfrom tqann import TurboQuantIndex\nfrom tqann.files import writing\n"
        "with writing(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        cwd=path.parent,  # not the checkout, which need not have the compiled module
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout.readline() == "held\n"
        synced.add(vectors[:1])
        for write in (synced.sync, synced.save):
            with pytest.raises(ConcurrentWriterError, match="one writer at a time") as caught:
                write(path)
            assert caught.value.filename == str(path)
        assert read_index(path).ntotal == 100  # readers need no lock
        child.kill()
        child.wait()
    synced.sync(path)  # the lock went with the process
    assert_saved(synced, path)
    assert os.listdir(path.parent) == [path.name]


class Failing(Disk):
    """Raises `code` in the call of the given number, from `torn` bytes of a write on."""

    def __init__(self, number, code, torn=0):
        self.left, self.code, self.torn, self.hit = number, code, torn, None

    def _due(self, name):
        self.left -= 1
        if self.left < 0 and self.hit is None:
            self.hit = name
            return True
        return False

    def write(self, descriptor, data, offset):
        if self._due("write"):
            if self.torn:
                super().write(descriptor, data[: self.torn], offset)
            raise OSError(self.code, os.strerror(self.code))
        return super().write(descriptor, data, offset)


for _name in ("open", "fsync", "truncate", "replace", "sync_folder"):

    def _call(self, *arguments, _name=_name):
        if self._due(_name):
            raise OSError(self.code, os.strerror(self.code))
        return getattr(Disk, _name)(self, *arguments)

    setattr(Failing, _name, _call)


@pytest.mark.parametrize("compact", [None, True])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EROFS, ReadOnlyPathError),
        (errno.EACCES, ReadOnlyPathError),
        (errno.EIO, OSError),
    ],
)
def test_errors_leave_the_file_as_it_was_and_the_index_usable(compact, code, error, vectors, path):
    hits = []
    for number in range(100):
        path.unlink(missing_ok=True)
        index = TurboQuantIndex(24, 4)
        index.add(vectors[:100])
        index.sync(path)
        before, file = to_bytes(index), path.read_bytes()
        index.add(vectors[:9])
        index.remove_ids([5, 50])
        after = to_bytes(index)
        failing = Failing(number, code, torn=number % 2 * 30)
        with using_disk(failing):
            if failing.hit is None:
                try:
                    index.sync(path, compact)
                except error as caught:
                    assert type(caught) is error or error is OSError  # noqa: PT017
                    assert error is OSError or caught.filename == str(path)  # noqa: PT017
        hits.append(failing.hit)
        if failing.hit in ("write", "open"):
            assert path.read_bytes() == file
        # An fsync that failed may have written all there is.
        assert to_bytes(read_index(path)) in (
            [before] if failing.hit in ("write", "open") else [before, after]
        )
        index.sync(path)
        assert to_bytes(read_index(path)) == after == to_bytes(index)
        index.add(vectors[:1])
        index.sync(path)
        assert_saved(index, path)
        assert os.listdir(path.parent) == [path.name]
        if failing.hit is None:
            break
    wanted = {"open", "write", "fsync", None} | ({"replace", "sync_folder"} if compact else set())
    assert set(hits) == wanted


def test_after_a_failed_fsync_a_new_file_is_written(synced, vectors, path):
    """What such a call has left on the disk, and what a second one would make of it, nobody knows."""

    class Failing(Disk):
        def fsync(self, descriptor):
            raise OSError(errno.EIO, "input/output error")

    synced.add(vectors[:1])
    before = path.stat().st_ino
    with using_disk(Failing()), pytest.raises(OSError, match="input/output error"):
        synced.sync(path)
    assert path.stat().st_ino == before
    synced.sync(path)
    assert path.stat().st_ino != before
    assert_saved(synced, path)


def test_a_vector_replaced_under_its_id(synced, vectors, path):
    """Nothing but the vector itself differs from what was synced."""
    for _ in range(2):
        for name in (99, 5):
            synced.remove_ids([name])
            synced.add_with_ids(vectors[100 + name % 7 :][:1], [name])
            synced.sync(path)
            assert_saved(synced, path)


def test_a_real_limit_of_the_system(synced, vectors, path):
    """A short write and then an error, from the system itself, in a process that may not write large files."""
    pytest.importorskip("resource")
    program = (
        "import sys, resource, signal, numpy as np, tqann\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "index = tqann.read_index(sys.argv[1])\n"
        "index.add(np.ones((4000, 24), np.float32))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "try:\n    index.sync(sys.argv[1], compact=False)\n"
        "except OSError as error:\n    print(error.errno)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print(tqann.read_index(sys.argv[1]).ntotal)\n"
        "index.sync(sys.argv[1], compact=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(errno.EFBIG), "100"]
    assert read_index(path).ntotal == 4100


def test_no_room_for_two_files(path):
    """Where the new file does not fit beside the old one, the changes are appended after all."""
    index = TurboQuantIndex(64, 8)
    x = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    index.add(x)
    index.sync(path)
    index.remove_ids(range(2900))

    class Full(Disk):
        def open(self, path, flags):
            if path.endswith(".tmp"):
                raise OSError(errno.ENOSPC, "full")
            return super().open(path, flags)

    size = path.stat().st_size
    with using_disk(Full()):
        with pytest.raises(DiskFullError):
            index.sync(path, compact=True)
        index.sync(path)
    assert path.stat().st_size > size
    assert_saved(index, path)


def test_what_killed_writers_left_is_removed(synced, path):
    lock = path.parent / lock_of(path)
    left = path.parent / lock.name.replace("lock", "0123456789abcdef.tmp")
    other = path.parent / ".tqann-0000000000000000-0.tmp"
    for entry in (lock, left, other):
        entry.write_bytes(b"left over")
    synced.sync(path, compact=True)
    assert sorted(os.listdir(path.parent)) == sorted([path.name, other.name])


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_file_system_without_locks(synced, vectors, path, monkeypatch):
    """Two writers are then told apart by what they find in the file alone."""

    def flock(*arguments):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    left = path.parent / lock_of(path).replace("lock", "00.tmp")
    left.write_bytes(b"perhaps of a writer at work")
    other = read_index(path)
    synced.add(vectors[:1])
    synced.sync(path)
    synced.sync(path, compact=True)
    with pytest.raises(ConcurrentWriterError):
        other.sync(path)
    assert_saved(synced, path)
    assert left.exists()
    left.unlink()


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_lock_whose_name_was_taken_away(synced, vectors, path, monkeypatch):
    """Its last holder may unlink it between its opening and its locking by the next one."""
    import fcntl

    plain, calls = fcntl.flock, []

    def flock(descriptor, operation):
        if not calls:
            (path.parent / beside(path)[0]).unlink()
        calls.append(operation)
        return plain(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    synced.add(vectors[:1])
    synced.sync(path)
    assert len(calls) == 2
    assert_saved(synced, path)
    assert os.listdir(path.parent) == [path.name]


def test_wrong_arguments(synced, path):
    with pytest.raises(TypeError, match="compact must be True, False or None, got 1"):
        synced.sync(path, compact=1)
    with pytest.raises(FileNotFoundError):
        synced.sync(path.parent / "missing" / "index.tqann")
    with pytest.raises(TypeError):
        synced.sync(5)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_folder_that_is_read_only(synced):
    program = (
        "import os, sys, numpy as np, tqann\n"
        "index = tqann.read_index(sys.argv[1])\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)\n"  # root may write anywhere
        "index.add(np.ones((1, 24), np.float32))\n"
        "for write in (index.sync, index.save):\n"
        "    try:\n        write(sys.argv[1])\n"
        "    except tqann.ReadOnlyPathError as error:\n        print(error.filename)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(os.path.realpath(folder), "index.tqann")
        synced.sync(path)
        os.chmod(folder, 0o555)
        try:
            done = subprocess.run(
                [sys.executable, "-c", program, path],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            os.chmod(folder, 0o755)
        assert done.stdout.split() == [path, path]
        assert read_index(path).ntotal == 100


@pytest.mark.gpu
def test_an_index_on_a_device(vectors, path):
    index = TurboQuantIndex(24, 4, device="cuda")
    index.add(vectors[:100])
    index.sync(path)
    index.add(vectors[:20])
    index.remove_ids([3, 50, 119])
    size = path.stat().st_size
    index.sync(path)
    assert 0 < path.stat().st_size - size < 23 * (index.code_size + 16) + 256
    assert to_bytes(read_index(path)) == to_bytes(index)


def test_changes_take_no_more_memory_than_the_rows():
    changes = Changes(1000)
    for _ in range(5000):
        changes.removed(np.arange(10), 900)
        assert sum(len(rows) for rows in (changes._moved, *changes._recent)) <= 1024 + 2 * 900
    np.testing.assert_array_equal(changes.moved(), np.arange(10))
    changes.removed(np.zeros(0, np.int64), 4)
    np.testing.assert_array_equal(changes.moved(), np.arange(4))
    assert changes.low == 4
