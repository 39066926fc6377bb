"""Threads and processes that share an index: the answers are those of one thread alone."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tqann import SearchParameters, TurboQuantIndex, read_index, write_index
from tqann.guard import Guard, guard_of

D = 32
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((3000, D)).astype(np.float32)
QUERIES = RNG.standard_normal((24, D)).astype(np.float32)

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(
    params=[
        {"bits": 4},
        {"bits": 2, "metric": "ip"},
        {"bits": 1, "refine_bits": 4},
        {"bits": 3, "code": "mse"},
    ]
)
def index(request):
    built = TurboQuantIndex(D, **request.param)
    built.add(VECTORS)
    return built


def same(results, expected):
    return all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


def test_concurrent_reads_equal_serial_ones(index):
    kinds = [
        lambda: index.search(QUERIES, 10),
        lambda: index.search(QUERIES[:1], 300),
        lambda: index.search(QUERIES, 5, params=SearchParameters(sel=np.arange(0, 3000, 3), threads=2)),
        lambda: index.range_search(QUERIES, float(np.median(index.search(QUERIES, 50)[0]))),
        lambda: index.search_and_reconstruct(QUERIES[:2], 3),
        lambda: (index.reconstruct_n(100, 50),),
        lambda: (index.ids,),
    ]
    expected = [kind() for kind in kinds]
    with ThreadPoolExecutor(8) as pool:
        asked = [(n, pool.submit(kinds[n])) for _ in range(12) for n in range(len(kinds))]
        assert all(same(future.result(), expected[n]) for n, future in asked)


@pytest.mark.parametrize("threads", [1, 2, 3, 16, 1000])
def test_thread_counts_give_the_same_bits(index, threads):
    expected = index.search(QUERIES, 10, params=SearchParameters(threads=1))
    assert same(index.search(QUERIES, 10, params=SearchParameters(threads=threads)), expected)
    index.threads = threads
    assert same(index.search(QUERIES, 10), expected)


def test_searches_run_at_the_same_time(index):
    """Two that wait for each other inside their filters both finish: neither keeps the other out."""
    both = threading.Barrier(2, timeout=30)

    class Waits:
        waited = False

        def is_member(self, id_):
            if not self.waited:
                both.wait()
                self.waited = True
            return True

    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(index.search, QUERIES, 3, params=Waits()) for _ in range(2))
        assert same(first.result(), second.result())


def test_searches_beside_changes_see_whole_states():
    """Vectors come and go in pairs of opposites; no search may see one of a pair without the other."""
    index = TurboQuantIndex(D, 8, "ip")
    pairs = np.concatenate([VECTORS[:64], -VECTORS[:64]])
    ids = np.concatenate([np.arange(64), np.arange(64) + 1000])
    index.add_with_ids(pairs, ids)
    torn, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            found = np.sort(index.search(QUERIES[:2], 2000)[1], axis=1)
            for row in found:
                row = row[row >= 0]
                half = len(row) // 2
                if not np.array_equal(row[:half] + 1000, row[half:]):
                    torn.append(row)

    readers = [threading.Thread(target=ask) for _ in range(4)]
    for reader in readers:
        reader.start()
    for turn in range(150):
        few = np.arange(turn % 40, turn % 40 + 20)
        both = np.concatenate([few, few + 1000])
        index.remove_ids(both)
        index.add_with_ids(pairs[np.concatenate([few, few + 64])], both)
        if turn % 50 == 49:
            index.reset()
            index.add_with_ids(pairs, ids)
    stop.set()
    for reader in readers:
        reader.join()
    assert not torn
    assert index.ntotal == 128


def test_saves_beside_changes_hold_whole_states(tmp_path):
    index = TurboQuantIndex(D, 4)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            index.add(VECTORS[:200])
            index.remove_ids(index.ids[:200])

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for turn in range(20):
            write_index(index, tmp_path / f"{turn}.tqann")
            pickle.loads(pickle.dumps(index))
    finally:
        stop.set()
        changer.join()
    for path in tmp_path.iterdir():  # reading checks checksums, and that ids are unique
        assert read_index(path).ntotal in (0, 200)


def test_concurrent_adds_lose_nothing():
    index = TurboQuantIndex(D, 4)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: index.add(VECTORS[n : n + 10]), range(0, 1000, 10)))
    assert index.ntotal == 1000
    np.testing.assert_array_equal(np.sort(index.ids), np.arange(1000))
    # Every vector is there once, under whichever id.
    D0, I0 = index.search(VECTORS[:1000], 1)
    assert len(set(I0[:, 0].tolist())) == 1000
    assert D0.max() < 1e-3


def test_crosswise_merges_end():
    """Each thread merges one index into the other; taking the guards in one order keeps them from a deadlock."""
    a, b = TurboQuantIndex(D, 4), TurboQuantIndex(D, 4)
    a.add(VECTORS[:100])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: a.merge_from(b) if n % 2 else b.merge_from(a), range(100), timeout=60))
    assert a.ntotal + b.ntotal == 100


def test_a_change_from_within_a_search_is_refused(index):
    class Adds:
        def is_member(self, id_):
            index.add(VECTORS[:1])
            return True

    with pytest.raises(RuntimeError, match="must not be changed from within its own search"):
        index.search(QUERIES, 1, params=Adds())
    assert index.ntotal == 3000
    index.add(VECTORS[:1])


def test_a_search_from_within_a_search_is_allowed(index):
    class Asks:
        def is_member(self, id_):
            return id_ in index.search(QUERIES[:1], 4)[1]

    waiting = threading.Thread(target=index.add, args=(VECTORS[:1],))

    class AsksWhileAChangeWaits(Asks):
        def is_member(self, id_):
            if waiting.ident is None:
                waiting.start()
                while not guard_of(index)._waiting:
                    time.sleep(0.001)
            return super().is_member(id_)

    index.remove_ids(np.arange(20, 3000))
    expected = index.search(QUERIES, 30, params=Asks())
    assert same(index.search(QUERIES, 30, params=AsksWhileAChangeWaits()), expected)
    waiting.join()
    assert index.ntotal == 21


def test_a_change_is_alone():
    """Threads are switched as often as can be, so that readers enter and leave between any two steps of a writer."""
    guard, reading, writing, seen = Guard(), [], [], set()

    def read():
        for _ in range(300):
            guard.start_reading()
            reading.append(1)
            seen.add(("a reader beside", len(writing)))
            time.sleep(0)
            seen.add(("a reader beside", len(writing)))
            reading.pop()
            guard.stop_reading()

    def change():
        for _ in range(100):
            with guard.changing():
                writing.append(1)
                seen.add(("a writer beside", len(reading), len(writing)))
                time.sleep(0)
                seen.add(("a writer beside", len(reading), len(writing)))
                writing.pop()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=target) for target in (read, read, read, change, change)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert seen == {("a reader beside", 0), ("a writer beside", 0, 1)}
    assert (guard._asking, guard._owed, guard._waiting, guard._readers, guard._writer) == (0, 0, 0, {}, None)


def test_waiting_writer_goes_before_later_readers():
    guard, order = Guard(), []
    guard.start_reading()

    def write():
        with guard.changing():
            order.append("write")

    def read():
        guard.start_reading()
        order.append("read")
        guard.stop_reading()

    writer = threading.Thread(target=write)
    writer.start()
    while not guard._waiting:
        time.sleep(0.001)
    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.05)
    assert order == []
    guard.stop_reading()
    writer.join()
    reader.join()
    assert order == ["write", "read"]


@pytest.mark.parametrize("busy", ["reading", "changing"])
def test_neither_kind_keeps_the_other_out(busy):
    """Four threads that take the guard again and again; one of the other kind still gets its turns."""
    guard, stop = Guard(), threading.Event()
    starts = {"reading": guard.start_reading, "changing": guard.start_changing}
    stops = {"reading": guard.stop_reading, "changing": guard.stop_changing}
    other = "changing" if busy == "reading" else "reading"

    def occupy():
        while not stop.is_set():
            starts[busy]()
            time.sleep(0.0002)
            stops[busy]()

    threads = [threading.Thread(target=occupy) for _ in range(4)]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(1) as pool:
        try:
            for _ in range(50):
                pool.submit(starts[other]).result(timeout=10)
                pool.submit(stops[other]).result(timeout=10)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert (guard._asking, guard._owed, guard._waiting, guard._readers, guard._writer) == (0, 0, 0, {}, None)


@pytest.mark.parametrize("interrupted", ["reading", "changing"])
def test_an_interrupted_wait_lets_the_others_on(interrupted):
    """Who waits behind a thread that an interrupt takes out of its own wait is let in."""
    guard, out = Guard(), threading.Event()
    wait, names = guard._free.wait, {}

    def interruptible():
        wait()
        if out.is_set() and names.get(threading.get_ident()) == interrupted:
            raise KeyboardInterrupt

    guard._free.wait = interruptible

    def take(kind):
        names[threading.get_ident()] = kind
        getattr(guard, f"start_{kind}")()
        getattr(guard, f"stop_{kind}")()
        return kind

    first, second = (guard.start_changing, "reading"), (guard.start_reading, "changing")
    (hold, held), other = (first, second) if interrupted == "reading" else (second, first)
    assert held == interrupted
    hold()
    with ThreadPoolExecutor(2) as pool:
        leaves = pool.submit(take, interrupted)
        while not (guard._waiting or guard._asking):
            time.sleep(0.001)
        stays = pool.submit(take, other[1])
        while not (guard._waiting and guard._asking):
            time.sleep(0.001)
        out.set()
        if (
            interrupted == "changing"
        ):  # a reader holds: the one that waits behind the writer needs nothing more
            with guard._lock:
                guard._free.notify(1)
            assert stays.result(timeout=10) == "reading"
            guard.stop_reading()
        else:  # a writer holds; when it leaves, the next one waits for the reader that it owes
            guard.stop_changing()
            assert stays.result(timeout=10) == "changing"
        with pytest.raises(KeyboardInterrupt):
            leaves.result(timeout=10)
    assert (guard._asking, guard._owed, guard._waiting, guard._readers, guard._writer) == (0, 0, 0, {}, None)


def test_an_error_gives_the_guard_back(index):
    with pytest.raises(ValueError, match="x"):
        index.add(VECTORS[:, :5])
    with pytest.raises(ValueError, match="x"):
        index.search(VECTORS[:, :5], 1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(index.add, VECTORS[:1]).result(timeout=30)


# A process with threads is forked on purpose; Python 3.12 and later warn of that.
forked = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def in_child(action):
    """Run `action` in a forked process; returns what it returns, or the text of its error."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run():
        try:
            sender.send(action())
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent shows it
            sender.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=run)
    process.start()
    assert receiver.poll(60), "the child hangs"
    result = receiver.recv()
    process.join()
    return result


@fork
@forked
def test_forked_process_searches_and_changes_its_copy(index):
    expected = index.search(QUERIES, 10)
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            index.search(QUERIES, 10, params=SearchParameters(threads=2))

    searching = [threading.Thread(target=ask) for _ in range(3)]
    for thread in searching:
        thread.start()

    def work():
        before = index.search(QUERIES, 10, params=SearchParameters(threads=2))
        index.add(VECTORS[:10])
        return before, index.ntotal

    try:
        for _ in range(3):
            found, ntotal = in_child(work)
            assert same(found, expected)
            assert ntotal == 3010
    finally:
        stop.set()
        for thread in searching:
            thread.join()
    assert index.ntotal == 3000


@fork
@forked
def test_index_forked_amid_a_change_is_refused_in_the_child(index):
    held, release = threading.Event(), threading.Event()

    def hold():
        with guard_of(index).changing():
            held.set()
            release.wait(60)

    changer = threading.Thread(target=hold)
    changer.start()
    held.wait(60)
    try:
        for action in (lambda: index.search(QUERIES, 1), lambda: index.add(VECTORS)):
            message = in_child(action)
            assert message.startswith(
                "RuntimeError: this process was forked while another thread changed the index"
            )
    finally:
        release.set()
        changer.join()
    assert index.search(QUERIES, 1)[1].shape == (24, 1)


def run(source, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_environment_variable_sets_the_default(tmp_path):
    source = "import tqcore._core as c; print(c.default_threads())"
    assert run(source, tmp_path, TQ_THREADS="3") == "3"
    expected = run(
        "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())",
        tmp_path,
    )
    for unset in ("", "0", "-2", "many"):
        assert run(source, tmp_path, TQ_THREADS=unset) == expected


def test_no_thread_outlives_a_call(tmp_path):
    source = """
import os, threading, numpy
tasks = "/proc/self/task"
count = lambda: len(os.listdir(tasks)) if os.path.isdir(tasks) else threading.active_count()
before = count()
import tqann.index, tqcore.scan
print(count() - before)
rows = numpy.random.default_rng(0).standard_normal((1000, 32), dtype="f4")
index = tqann.TurboQuantIndex(32)
index.add(rows)
index.search(rows, 3)
print(count() - before)
"""
    assert run(source, tmp_path, TQ_THREADS="4") == "0\n0"
