"""The index on CUDA: codes, ids and files are those of the CPU index."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

import tqann
from tqann import TurboQuantIndex

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu


def _data(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def _pair(n: int, d: int, bits: float = 4, **options) -> tuple[TurboQuantIndex, TurboQuantIndex]:
    x = _data(n, d)
    if n > 40:
        x[n // 2] = 0
        x[n // 3] = x[n // 5]  # equal codes, which go by id
    indexes = [TurboQuantIndex(d, bits, device=device, **options) for device in ("cpu", "cuda")]
    for index in indexes:
        index.add(x)
    return indexes[0], indexes[1]


def _same(cpu, gpu) -> None:
    (D, ids), (ours, names) = cpu, gpu
    np.testing.assert_array_equal(names, ids)
    # Both round one double; sums of doubles in another order move it by an ulp at most.
    np.testing.assert_array_max_ulp(ours, D, maxulp=1)


@pytest.mark.parametrize("nq", [1, 8, 9, 130])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(
    ("bits", "memory", "d"), [(4, 2, 96), (2, 2, 200), (3.5, 3, 64), (1, 2, 768), (8, 2, 9)]
)
def test_results_are_those_of_the_cpu(bits: float, memory: int, d: int, metric: str, nq: int) -> None:
    cpu, gpu = _pair(3001, d, bits, metric=metric, memory=memory)
    q = _data(nq, d, 1)
    q[0] = 0
    for k in (1, 10, 100):
        _same(cpu.search(q, k), gpu.search(q, k))


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 257])
@pytest.mark.parametrize("nq", [0, 1, 20])
def test_seams(n: int, nq: int) -> None:
    cpu, gpu = _pair(n, 16)
    q = _data(nq, 16, 1)
    for k in (1, 40, 300):
        _same(cpu.search(q, k), gpu.search(q, k))


@pytest.mark.parametrize("nq", [3, 40])
def test_many_rows_and_large_k(nq: int) -> None:
    cpu, gpu = _pair(150_000, 64, 2, metric="ip")
    q = _data(nq, 64, 1)
    for k in (10, 1024):
        _same(cpu.search(q, k), gpu.search(q, k))


@pytest.mark.parametrize("nq", [1, 30, 60, 110, 300])
@pytest.mark.parametrize(
    ("bits", "memory", "d"), [(4, 2, 65), (4, 3, 130), (2, 2, 99), (2, 3, 64), (1, 2, 200)]
)
def test_products_of_bytes(bits: float, memory: int, d: int, nq: int) -> None:
    cpu, gpu = _pair(40_000, d, bits, metric="l2" if memory == 2 else "ip", memory=memory)
    q = _data(nq, d, 1)
    for k in (1, 10):
        _same(cpu.search(q, k), gpu.search(q, k))


@pytest.mark.parametrize("nq", [3, 300])
def test_queries_of_one_large_coordinate(nq: int) -> None:
    cpu, gpu = _pair(20_000, 64, 4, metric="ip")
    q = np.zeros((nq, 64), np.float32)
    q[np.arange(nq), np.arange(nq) % 64] = np.logspace(-18, 18, nq)
    _same(cpu.search(q, 10), gpu.search(q, 10))


def test_thresholds_raised_on_the_way() -> None:
    cpu, gpu = _pair(150_000, 64, 2, metric="l2")
    q = _data(3000, 64, 1)
    _same(cpu.search(q, 10), gpu.search(q, 10))


@pytest.mark.parametrize("nq", [2, 20])
def test_ties_beyond_the_room_for_candidates(nq: int) -> None:
    x = np.repeat(_data(3, 32), 5000, axis=0)
    cpu, gpu = TurboQuantIndex(32), TurboQuantIndex(32, device="cuda")
    for index in (cpu, gpu):
        index.add_with_ids(x, np.arange(len(x))[::-1] * 3)
    _same(cpu.search(_data(nq, 32, 1), 7), gpu.search(_data(nq, 32, 1), 7))


@pytest.mark.parametrize("nq", [2, 20])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3])
def test_filters(nq: int, share: float) -> None:
    cpu, gpu = _pair(5000, 48)
    mask = np.random.default_rng(2).random(5000) < share
    q = _data(nq, 48, 1)
    _same(cpu.search(q, 10, params=mask), gpu.search(q, 10, params=mask))


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_range_search(metric: str) -> None:
    cpu, gpu = _pair(2000, 32, metric=metric)
    q = _data(5, 32, 1)
    radius = float(np.median(cpu.search(q, 30)[0][:, -1]))
    expected, ours = cpu.range_search(q, radius), gpu.range_search(q, radius)
    np.testing.assert_array_equal(ours[0], expected[0])
    np.testing.assert_array_equal(ours[2], expected[2])


def test_changes_leave_the_same_index() -> None:
    cpu, gpu = _pair(1000, 24)
    for index in (cpu, gpu):
        index.remove_ids(np.arange(100, 400))
        index.add_with_ids(_data(50, 24, 3), np.arange(5000, 5050))
        index.add(_data(7, 24, 4))
    q = _data(12, 24, 1)
    np.testing.assert_array_equal(gpu.ids, cpu.ids)
    _same(cpu.search(q, 20), gpu.search(q, 20))
    np.testing.assert_allclose(gpu.reconstruct(5049), cpu.reconstruct(5049), rtol=1e-6, atol=1e-6)
    other = TurboQuantIndex(24)
    other.add(_data(9, 24, 5))
    merged = other.copy()
    cpu.merge_from(other)
    gpu.merge_from(merged)
    _same(cpu.search(q, 20), gpu.search(q, 20))


def test_files_and_moves(tmp_path: Path) -> None:
    cpu, gpu = _pair(500, 40, 2.5, metric="ip")
    cpu.save(tmp_path / "cpu")
    gpu.save(tmp_path / "gpu")
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "gpu").read_bytes()
    q = _data(3, 40, 1)
    read = tqann.read_index(tmp_path / "gpu", mmap=True)
    for index in (
        gpu.to("cpu"),
        cpu.to("cuda"),
        read.to("cuda"),
        copy.deepcopy(gpu),
        pickle.loads(pickle.dumps(gpu)),
    ):
        _same(cpu.search(q, 10), index.search(q, 10))
    assert gpu.to("cuda") is gpu
    assert cpu.device == "cpu"
    assert gpu.device.startswith("cuda:")


def test_tensors_stay_on_the_device() -> None:
    cpu, gpu = _pair(700, 32)
    q = torch.from_numpy(_data(4, 32, 1)).cuda()
    gpu.add(torch.from_numpy(_data(9, 32, 6)).cuda())
    cpu.add(_data(9, 32, 6))
    D, ids = gpu.search(q, 5)
    assert D.is_cuda
    assert ids.is_cuda
    _same(cpu.search(q.cpu().numpy(), 5), (D.cpu().numpy(), ids.cpu().numpy()))
    _, labels, vectors = gpu.search_and_reconstruct(q, 5)
    assert vectors.is_cuda
    assert torch.equal(labels, ids)
    bad = q.clone()
    bad[2, 3] = torch.nan
    with pytest.raises(ValueError, match="row 2"):
        gpu.search(bad, 5)
    with pytest.raises(ValueError, match="shape"):
        gpu.search(q[:, :8], 5)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_calibrated_plans_agree_but_for_boundaries(metric: str) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3000, 96)) * np.linspace(3, 0.1, 96) + 0.5).astype(np.float32)
    cpu = TurboQuantIndex(96, 2, metric=metric, plan="calibrated")
    gpu = TurboQuantIndex(96, 2, metric=metric, plan="calibrated", device="cuda")
    for index in (cpu, gpu):
        index.calibrate(x)
        index.add(x)
    ours, theirs = (i.to("cpu")._vectors.storage.rows(slice(0, 3000)) for i in (gpu, cpu))
    assert (ours != theirs).any(axis=1).mean() < 0.002
    moved = cpu.to("cuda")
    for nq in (4, 30):
        q = x[:nq] + 0.01
        D, ids = cpu.search(q, 10)
        ours, names = moved.search(q, 10)
        np.testing.assert_allclose(ours, D, rtol=1e-5, atol=1e-4)
        assert (names == ids).mean() > 0.99


@pytest.mark.parametrize("nq", [1, 8, 100])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_searches_that_come_again(nq: int, metric: str) -> None:
    cpu, gpu = _pair(6000, 64, metric=metric)
    for change in range(3):
        for seed in range(4):  # replayed from the third on
            q = _data(nq, 64, 10 + seed)
            _same(cpu.search(q, 10), gpu.search(q, 10))
        bad = torch.from_numpy(q).cuda()
        bad[nq - 1, 3] = torch.inf
        with pytest.raises(ValueError, match=f"row {nq - 1}"):
            gpu.search(bad, 10)
        mask = np.arange(len(cpu)) % 3 == 0
        _same(cpu.search(q, 10, params=mask), gpu.search(q, 10, params=mask))
        _same(cpu.search(q, 10), gpu.search(q, 10))
        for index in (cpu, gpu):
            if change == 0:
                index.remove_ids(np.arange(50, 300))
            else:
                index.add_with_ids(_data(5000, 64, change), 10_000 * change + np.arange(5000))


def test_replays_on_several_streams_and_threads() -> None:
    cpu, gpu = _pair(20_000, 64, metric="l2")
    failures = []

    def work(seed: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream() if seed % 2 else torch.cuda.default_stream()):
                for i in range(12):
                    q = _data(4, 64, 100 * seed + i)
                    _same(cpu.search(q, 10), gpu.search(q, 10))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_codes_the_device_does_not_take() -> None:
    with pytest.raises(ValueError, match="device 'cuda' takes code='chain'"):
        TurboQuantIndex(32, 2, code="prod", device="cuda")
    with pytest.raises(ValueError, match="device must be"):
        TurboQuantIndex(32, 2, device="tpu")
