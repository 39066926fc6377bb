"""Saving: the file is the old one or the new one, whole, wherever a save is interrupted."""

import errno
import os
import stat

import numpy as np
import pytest

from tqann import read_index
from tqann.io import to_bytes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.tqann"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and links")
def test_permissions_and_links_are_kept(index, path, tmp_path):
    index.save(path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    index.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    np.testing.assert_array_equal(read_index(path).ids, index.ids)


class Fault:
    """Lets `allowed` calls of the named os functions pass and raises in the next one."""

    def __init__(self, monkeypatch, names, allowed, error):
        self.left, self.error, self.hit = allowed, error, None
        for name in names:
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, function):
        def call(*arguments, **options):
            if self.left == 0:
                self.left -= 1
                self.hit = name
                if name == "write":  # a torn write: half of it reaches the file
                    function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise self.error
            self.left -= 1
            return function(*arguments, **options)

        return call


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space left"), KeyboardInterrupt()])
def test_a_save_interrupted_anywhere_leaves_the_old_file_whole(sparse_index, index, path, monkeypatch, error):
    index.save(path)
    old, new = path.read_bytes(), to_bytes(sparse_index)
    calls = ("open", "write", "lseek", "fsync", "replace", "chmod")
    hits = []
    for allowed in range(100):
        with monkeypatch.context() as patch:
            fault = Fault(patch, calls, allowed, error)
            try:
                sparse_index.save(path)
            except type(error):
                assert fault.hit
        if fault.hit is None:
            break
        hits.append(fault.hit)
        # Once renamed the new file is complete, even if syncing the folder fails.
        assert path.read_bytes() == (new if "replace" in hits[:-1] else old)
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        path.write_bytes(old)
    else:
        pytest.fail("the fault was hit at every count")
    assert set(hits) == set(calls)
    assert hits.count("write") >= 7
    assert hits.count("fsync") == 2
    assert path.read_bytes() == new


def test_short_writes_are_completed(index, path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:100]))
    index.save(path)
    assert path.read_bytes() == to_bytes(index)


def test_a_save_takes_a_file_from_the_syncs_and_leaves_others_alone(index, path, tmp_path, vectors):
    index.sync(path)
    file = path.stat().st_ino
    index.save(tmp_path / "other.tqann")
    index.add(vectors[:3])
    index.sync(path)
    assert path.stat().st_ino == file  # appended to: it is still the file of the last sync
    index.save(path)
    index.add(vectors[:2])
    index.sync(path)
    assert to_bytes(read_index(path)) == to_bytes(index)
