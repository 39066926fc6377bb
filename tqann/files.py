"""Files changed so that a crash at any moment leaves a whole one, and the errors by which that may fail."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

__all__ = [
    "ConcurrentWriterError",
    "Disk",
    "DiskFullError",
    "Output",
    "ReadOnlyPathError",
    "disk",
    "named_errors",
    "no_room",
    "replace_file",
    "using_disk",
    "writing",
]

T = TypeVar("T")

_BINARY = getattr(os, "O_BINARY", 0)
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_LOCK_OFFSET = 1 << 30  # past the end, where a lock of Windows hides no byte from readers


class DiskFullError(OSError):
    """There is no room on the disk, or within the quota; the file holds what it held before."""


class ReadOnlyPathError(PermissionError):
    """The file or its folder may not be written."""


class ConcurrentWriterError(OSError):
    """Another index is writing this file, or has changed it since this one read or wrote it."""


class Disk:
    """The calls by which files change, one method each, so that tests can make any of them fail or be the last."""

    def open(self, path: str, flags: int) -> int:
        """Return a descriptor of `path`, which is created for flags that say so."""
        return os.open(path, flags | _BINARY, 0o666)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write some of `data` at `offset` and return how many bytes that was."""
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut the file to `length` bytes."""
        os.ftruncate(descriptor, length)

    def fsync(self, descriptor: int) -> None:
        """Return when what was written has reached the disk."""
        try:
            import fcntl

            # macOS, where fsync stops at the drive's cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # pyright: ignore[reportAttributeAccessIssue]
        except (ImportError, AttributeError, OSError):  # other systems, and file systems without it
            os.fsync(descriptor)

    def replace(self, source: str, target: str) -> None:
        """Give `source` the name `target`, in place of what had it."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file."""
        os.unlink(path)

    def sync_folder(self, folder: str) -> None:
        """Return when the names in `folder` have reached the disk."""
        if os.name == "nt":  # Windows cannot open a folder for this
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_disk = Disk()


def disk() -> Disk:
    """Return the disk that files are written to."""
    return _disk


@contextmanager
def using_disk(other: Disk) -> Iterator[None]:
    """Write files by `other` for a while."""
    global _disk
    before, _disk = _disk, other
    try:
        yield
    finally:
        _disk = before


@contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Raise DiskFullError and ReadOnlyPathError, with the name of `path`, for the OSErrors that mean them."""
    try:
        yield
    except (DiskFullError, ReadOnlyPathError, ConcurrentWriterError):
        raise
    except OSError as error:
        if no_room(error):
            rule = "there is no room to write the index, and the file is as it was"
            raise DiskFullError(error.errno, rule, path) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            rule = "the file and its folder must be writable, and are not"
            raise ReadOnlyPathError(error.errno, rule, path) from error
        raise


def no_room(error: OSError) -> bool:
    """Whether an error says that the disk is full, or the quota used up."""
    return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class Output:
    """A file being written, with the two methods of binary files that this takes.

    Parameters
    ----------
    descriptor : int
    offset : int
        Where the first write goes.
    """

    def __init__(self, descriptor: int, offset: int = 0) -> None:
        self._descriptor = descriptor
        self._offset = offset

    def seek(self, offset: int) -> None:
        """Put the next write at `offset`."""
        self._offset = offset

    def write(self, data: Any) -> None:
        """Write all bytes of a buffer."""
        held = memoryview(data)
        if not held.nbytes:  # an array without rows or columns cannot be cast
            return
        rest = held.cast("B")
        while rest:
            count = disk().write(self._descriptor, rest, self._offset)
            self._offset += count
            rest = rest[count:]


@contextmanager
def writing(path: str) -> Iterator[bool]:
    """Hold the lock of all who write `path`; the value is False where the file system has no locks.

    The lock is advisory and lies on a file beside `path`, which goes when the lock does. A process that dies lets go
    of it. Raises ConcurrentWriterError if another holds it.
    """
    name = _hidden(path, "lock")
    while True:
        descriptor = disk().open(name, os.O_RDWR | os.O_CREAT)
        try:
            held = _lock(descriptor, path)
            # Whoever held it before may have unlinked the name in between.
            if _same_file(descriptor, name):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield held
    finally:
        if os.name == "nt":  # an open file cannot be unlinked there
            os.close(descriptor)
            with suppress(OSError):
                disk().unlink(name)
        else:
            with suppress(OSError):
                disk().unlink(name)
            os.close(descriptor)


def replace_file(path: str, write: Callable[[Output], T], alone: bool) -> tuple[os.stat_result, T]:
    """Put what `write` writes in the place of `path`, whole, and return its status and what `write` returned.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name last. After an error the
    temporary file is gone. `alone` says that the lock is held: what killed processes left behind is then removed.
    """
    folder = os.path.dirname(path)
    if alone:
        _remove_leftovers(path)
    temporary = _hidden(path, f"{secrets.token_hex(8)}.tmp")
    descriptor = disk().open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            if os.path.exists(path):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            result = write(Output(descriptor))
            disk().fsync(descriptor)
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        disk().replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            disk().unlink(temporary)
        raise
    disk().sync_folder(folder)
    return status, result


def _hidden(path: str, suffix: str) -> str:
    """The path of a file that belongs to `path`, in the same folder; a digest keeps it short for any name."""
    folder, name = os.path.split(path)
    digest = hashlib.blake2s(os.fsencode(os.path.normcase(name)), digest_size=8).hexdigest()
    return os.path.join(folder, f".tqann-{digest}-{suffix}")


def _remove_leftovers(path: str) -> None:
    folder, prefix = os.path.split(_hidden(path, ""))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                with suppress(OSError):
                    disk().unlink(entry.path)


def _same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: str) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _LOCK_OFFSET, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:  # some network file systems; the checks of who wrote last remain
            return False
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            rule = "the file must have one writer at a time, and another one is writing it"
            raise ConcurrentWriterError(error.errno, rule, path) from error
        raise
    return True
