"""Reads of an index side by side, changes of it alone, whatever the threads that ask."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, TypeVar, cast

__all__ = ["Guard", "guard_of", "guarded", "reading"]

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


class Guard:
    """A lock that many readers hold at once, or one writer; a thread that holds it may ask again.

    Neither kind keeps the other out: a waiting writer goes before readers that come later, and readers that waited
    for a writer go before the next one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._readers: dict[int, int] = {}
        self._writer: int | None = None
        self._depth = 0
        self._waiting = 0  # writers
        self._asking = 0  # readers
        self._owed = 0  # readers that go before the next writer
        self._changes = 0
        self._torn = False
        _guards.add(self)

    def start_reading(self) -> None:
        """Take it beside other readers; waits while a writer has it.

        Raises RuntimeError in a process forked while another thread was changing what is guarded.
        """
        # Without the lock where nobody changes anything. A reader is entered before it looks for writers, a writer is
        # counted before it looks for readers, so that never both miss the other.
        me, readers = get_ident(), self._readers
        depth = readers.get(me, 0)
        readers[me] = depth + 1
        if not depth and (self._writer is not None or self._waiting or self._torn):
            self._start_slowly(me)

    def stop_reading(self) -> None:
        """Give back what `start_reading` took."""
        me, readers = get_ident(), self._readers
        depth = readers[me] - 1
        if depth:
            readers[me] = depth
            return
        del readers[me]
        if self._waiting:
            with self._lock:
                self._free.notify_all()

    def _start_slowly(self, me: int) -> None:
        if self._writer == me:
            return
        try:
            with self._lock:
                del self._readers[me]
                if not self._readers:  # a writer may have seen this one and wait for it
                    self._free.notify_all()
                if self._writer is not None or self._waiting:
                    self._wait_to_read()
                self._check_whole()
                self._readers[me] = 1
        except BaseException:
            self._readers.pop(me, None)
            with self._lock:
                self._free.notify_all()
            raise

    def _wait_to_read(self) -> None:
        came = self._changes
        self._asking += 1
        try:
            while self._writer is not None or (self._waiting and self._changes == came):
                self._free.wait()
        except BaseException:  # an interrupt: who waits for this one must look again
            self._free.notify_all()
            raise
        finally:
            self._asking -= 1
            if self._changes != came:
                self._owed -= 1

    def start_changing(self) -> None:
        """Take it alone; waits for readers and writers to finish.

        Raises RuntimeError in a thread that is reading, which would wait for itself, and as `start_reading` does.
        """
        me = get_ident()
        with self._lock:
            if self._writer != me:
                if me in self._readers:
                    raise RuntimeError("an index must not be changed from within its own search or filter")
                self._waiting += 1
                try:
                    while self._writer is not None or self._readers or self._owed:
                        self._free.wait()
                    self._check_whole()
                    self._writer = me
                except BaseException:
                    self._free.notify_all()
                    raise
                finally:
                    self._waiting -= 1
            self._depth += 1

    def stop_changing(self) -> None:
        """Give back what `start_changing` took."""
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self._writer = None
                self._changes += 1
                self._owed = self._asking
                if self._waiting or self._asking:
                    self._free.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold it alone; see `start_changing`."""
        self.start_changing()
        try:
            yield
        finally:
            self.stop_changing()

    def after_fork(self) -> None:
        """Drop, in the child, what threads held that are not there; only the forking one is."""
        me = get_ident()
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._waiting = self._asking = self._owed = 0
        self._readers = {thread: depth for thread, depth in self._readers.items() if thread == me}
        if self._writer not in (None, me):
            self._writer, self._depth, self._torn = None, 0, True

    def _check_whole(self) -> None:
        if self._torn:
            raise RuntimeError(
                "this process was forked while another thread changed the index, which is not whole here: "
                "fork when no thread does, or read the index again"
            )


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()
_making = threading.Lock()


def _after_fork() -> None:
    global _making
    _making = threading.Lock()
    for guard in list(_guards):
        guard.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


def guard_of(index: Any) -> Guard:
    """Return the guard of an index, made when first asked for."""
    guard = index.__dict__.get("_guard")
    if guard is None:
        with _making:
            if "_guard" not in index.__dict__:
                index._guard = Guard()
            guard = index._guard
    return guard


def guarded(*, reads: str, changes: str) -> Callable[[C], C]:
    """Class decorator: methods and properties named in `reads` run side by side, those in `changes` alone.

    Names are separated by spaces. A change holds the guards of the indexes among its arguments as well.
    """

    def decorate(cls: C) -> C:
        for names, wrap in ((reads, reading), (changes, functools.partial(_changing, cls))):
            for name in names.split():
                member = getattr(cls, name)
                if isinstance(member, property) and member.fget:
                    setattr(cls, name, property(wrap(member.fget)))
                elif not isinstance(member, property):
                    setattr(cls, name, wrap(member))
        return cls

    return decorate


def reading(method: F) -> F:
    """Decorator: a method, or a function of an index, runs beside others that read."""

    @functools.wraps(method)
    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard = self.__dict__.get("_guard") or guard_of(self)
        guard.start_reading()
        try:
            return method(self, *args, **kwargs)
        finally:
            guard.stop_reading()

    return cast(F, read)


def _changing(cls: type, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def change(self: Any, *args: Any, **kwargs: Any) -> Any:
        others = [value for value in (*args, *kwargs.values()) if isinstance(value, cls)]
        if not others:
            guard = guard_of(self)
            guard.start_changing()
            try:
                return method(self, *args, **kwargs)
            finally:
                guard.stop_changing()
        # One order for all threads, so that two that merge crosswise do not wait for each other.
        guards = sorted({guard_of(index) for index in (self, *others)}, key=id)
        held: list[Guard] = []
        try:
            for guard in guards:
                guard.start_changing()
                held.append(guard)
            return method(self, *args, **kwargs)
        finally:
            for guard in held:
                guard.stop_changing()

    return change
