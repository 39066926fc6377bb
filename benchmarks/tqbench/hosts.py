"""Where an index under test lives: in this process, or in processes with a fixed thread count."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

from .adapters import create
from .errors import Unavailable
from .methods import Case

__all__ = ["Host", "InProcess", "InWorkers", "open_host"]


class Host(ABC):
    """Runs functions on an index, with one thread or with all."""

    @abstractmethod
    def call(self, function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
        """`function(adapter, *arguments)` with `threads` threads."""

    @abstractmethod
    def build(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same for a function that changes the index, so that every copy sees it; all threads."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the index."""


class InProcess(Host):
    """An index whose thread count can change."""

    def __init__(self, case: Case, d: int, metric: str, threads: int) -> None:
        self._make = lambda: create(case, d, metric)
        self.adapter, self.threads = self._make(), threads

    def call(self, function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
        """Run here."""
        self.adapter.set_threads(threads)
        return function(self.adapter, *arguments)

    def build(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run here on a fresh index."""
        self.adapter = self._make()
        return self.call(function, *arguments, threads=self.threads)

    def close(self) -> None:
        """Drop it."""
        del self.adapter


class InWorkers(Host):
    """An index whose library reads its thread count once: a process per thread count."""

    def __init__(self, case: Case, d: int, metric: str, threads: int, counts: Iterable[int] = (1,)) -> None:
        create(case, d, metric)
        self.threads = threads
        self._workers = {count: _Worker(case, d, metric, count) for count in {*counts, threads}}

    def call(self, function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
        """Run in the process that has `threads`."""
        return self._workers[threads].call(function, *arguments)

    def build(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run in every process on a fresh index; the answer is of the one with all threads."""
        answers = {count: worker.call(None, function, *arguments) for count, worker in self._workers.items()}
        return answers[self.threads]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers.values():
            worker.close()


class _Worker:
    def __init__(self, case: Case, d: int, metric: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        wanted = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
        wanted |= case.method.environment
        held = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            self._process = context.Process(target=_serve, args=(theirs, case, d, metric), daemon=True)
            self._process.start()
        finally:
            for name, value in held.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()

    def call(self, *message: Any) -> Any:
        self._connection.send(message)
        try:
            outcome, value = self._connection.recv()
        except EOFError as error:
            raise RuntimeError("the process of an index under test has died") from error
        if outcome == "unavailable":
            raise Unavailable(value)
        if outcome == "error":
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()


def _serve(connection: Connection, case: Case, d: int, metric: str) -> None:
    adapter = create(case, d, metric)
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        try:
            if message[0] is None:
                adapter, message = create(case, d, metric), message[1:]
            connection.send(("done", message[0](adapter, *message[1:])))
        except Unavailable as error:
            connection.send(("unavailable", str(error)))
        except Exception:  # noqa: BLE001 - whatever it is, the caller must hear of it
            connection.send(("error", traceback.format_exc()))


def open_host(case: Case, d: int, metric: str, threads: int, counts: Iterable[int] = (1,)) -> Host:
    """A host for a case; raises Unavailable where the case cannot run.

    Parameters
    ----------
    case, d, metric
        What to index with.
    threads : int
        "All threads", with which it is built.
    counts : iterable of int
        Other thread counts that will be asked for.
    """
    adapter = create(case, d, metric)
    if adapter.threads_can_change:
        return InProcess(case, d, metric, threads)
    return InWorkers(case, d, metric, threads, counts)
