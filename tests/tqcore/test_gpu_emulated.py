"""The search kernels for CUDA, compiled for the CPU and run a thread a thread: results are those of the CPU index."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqann import TurboQuantIndex
from tqcore import _core
from tqcore.rotation import HadamardRotation

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="needs Linux and g++ with C++20"
)

_SHIM = Path(__file__).parent / "cuda"
_REPLACED = {
    "u16 half_bits": "inline u16 half_bits(float) { return 0; }\n",
    "u32 picked": "inline u32 picked(u32 a, u32 b, u32 n) { return picked_(a, b, n); }\n",
    "void multiply": (
        "inline void multiply(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, uint2 b)"
        "{ multiply_(c, a0, a1, a2, a3, b); }\n"
    ),
}


def _translated(source: str, options: tuple[str, ...]) -> tuple[str, list[str]]:
    """C++ of a CUDA source with a launcher for every kernel, and the names of its dynamic shared memory."""
    shared = sorted(set(re.findall(r"extern __shared__ (?:__align__\(\d+\) )?\w+ (\w+)\[\];", source)))
    source = source.replace("extern __shared__", "extern")
    for name, text in _REPLACED.items():
        at = source.find(f"__device__ __forceinline__ {name}")
        if at >= 0:
            source = source[:at] + text + source[source.index("\n}\n", at) + 3 :]
    source = re.sub(r'asm volatile\("prefetch.*\n', ";\n", source)
    source = re.sub(r'asm volatile\("ld.shared.*\n', "v = 0;\n", source)  # of a kernel that is not run here
    names = re.findall(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?([a-z]\w+)\(', source)
    if "-DTILES=1" in options:
        names.append("store")
    elif "PRODUCT(" in source:
        names = [*(n for n in names if n != "collect_scores"), "best_of", "hits_of"]
    launchers = (
        f'extern "C" void launch_{n}(int x, int y, int threads, void** args) {{ run_({n}, x, y, threads, args); }}\n'
        for n in names
    )
    return '#include "shim.h"\n' + source + "".join(launchers), shared


class _Emulator:
    """Builds sources once and launches their kernels on tensors of the CPU."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._built = folder, {}

    def kernel(self, source: str, name: str, options: tuple[str, ...] = ()) -> Callable[..., None]:
        from tqcore.gpu.rtc import _argument

        def launch(
            grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared: int = 0
        ) -> None:
            assert shared <= 227 << 10
            values = [_argument(a) for a in args]
            pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            function = getattr(self._library(source, options), f"launch_{name}")
            function(grid[0], grid[1] if len(grid) > 1 else 1, block[0], pointers)

        return launch

    def _library(self, source: str, options: tuple[str, ...]) -> ctypes.CDLL:
        key = (source, options)
        if key not in self._built:
            text, shared = _translated(source, options)
            stem = self._folder / f"m{len(self._built)}"
            stem.with_suffix(".cpp").write_text(text)
            # The kernels see the same bytes under types of their own, so they are defined apart.
            stem.with_suffix(".c").write_text(
                "".join(f"char {n}[232448] __attribute__((aligned(1024)));\n" for n in shared)
            )
            common = ["-O1", "-fPIC", "-w"]
            subprocess.run(["gcc", *common, "-c", f"{stem}.c", "-o", f"{stem}.o"], check=True)
            command = [
                "g++",
                "-std=c++20",
                "-ffp-contract=off",
                "-pthread",
                "-shared",
                "-Wl,-Bsymbolic",
                *common,
            ]
            command += [*options, f"-I{_SHIM}", f"{stem}.cpp", f"{stem}.o", "-o", f"{stem}.so"]
            subprocess.run(command, check=True)
            self._built[key] = ctypes.CDLL(f"{stem}.so")
        return self._built[key]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> _Emulator:
    return _Emulator(tmp_path_factory.mktemp("cuda"))


class _NoStream:
    def synchronize(self) -> None: ...


class _NoDevice:
    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def gpu(emulator: _Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the search and the rotation run in the emulator, on a device of two processors."""
    from tqcore.gpu import product, rotation, search

    def of(*names: str) -> Callable[[str], Callable[..., None]]:
        return lambda name: emulator.kernel(product.sources(*names), name)

    def variant(name: str, tables: Any, tiles: int) -> Callable[..., None]:
        defined = {
            "PERIOD": tables.period,
            "PHASES": tables.phases,
            "MEMORY": tables.memory,
            "TILES": tiles,
            "BLOCKS": 1,
        }
        options = tuple(f"-D{key}={value}" for key, value in defined.items())
        return emulator.kernel(product.sources("rows.cuh", "product.cu"), name, options)

    monkeypatch.setattr(product, "_kernel", variant)
    monkeypatch.setattr(product, "_select", of("rows.cuh", "select.cu"))
    monkeypatch.setattr(search, "_kernel", of("rows.cuh", "search.cu"))
    monkeypatch.setattr(rotation, "_kernel", lambda: of("rotation.cu")("rotate"))
    monkeypatch.setattr(product, "_PROCESSORS", 2)
    monkeypatch.setattr(product, "_MOST_WARPS", 8)
    monkeypatch.setattr(product, "_SAMPLED", 32)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr(torch.cuda, "current_stream", _NoStream)
    monkeypatch.setattr(torch.cuda, "device", _NoDevice)


def _compare(
    n: int, d: int, bits: float, memory: int, metric: str, nq: int, k: int, mask: np.ndarray | None = None
) -> None:
    from tqcore.gpu.layout import LANES, UNIT, CodeLayout, DeviceRows, pack_blocks
    from tqcore.gpu.search import longest, search

    rng = np.random.default_rng(0)
    x, q = (rng.standard_normal((m, d)).astype(np.float32) for m in (n, nq))
    if n > 40:
        x[n // 2] = 0
        x[n // 3] = x[n // 5]
    index = TurboQuantIndex(d, bits, metric, memory=memory)
    index.add(x)
    quantizer = index._vectors.quantizer
    codes, scalars = quantizer.encode(x)
    layout = CodeLayout(quantizer, torch.device("cpu"))
    blocks = torch.zeros(-(-n // LANES), layout.words // UNIT, LANES, UNIT, dtype=torch.int32)
    pack_blocks(blocks, 0, torch.from_numpy(codes))
    columns = torch.from_numpy(np.ascontiguousarray(scalars.T))
    bits_of = None
    if mask is not None:
        packed = np.packbits(mask, bitorder="little")
        bits_of = torch.from_numpy(np.pad(packed, (0, -len(packed) % 4)).view(np.int32))
    rows = DeviceRows(
        blocks, columns[0].contiguous(), 0.5 * columns[-1] if metric == "l2" else None, n, bits_of
    )
    rotated = torch.from_numpy(HadamardRotation(d, quantizer.seed).rotate(q))
    constants = None if metric == "ip" else torch.from_numpy(q).double().square().sum(dim=1)
    ours, names = search(layout, rows, rotated, constants, k, longest(layout, rows))
    distances, ids = index.search(q, k, params=mask)
    np.testing.assert_array_equal(names.numpy(), ids)
    np.testing.assert_array_max_ulp(ours.numpy(), distances, maxulp=1)


@pytest.mark.parametrize(
    ("n", "d", "bits", "memory", "metric", "nq", "k"),
    [
        (200, 768, 4, 2, "ip", 1, 3),  # every bound is kept
        (400, 130, 3, 2, "l2", 3, 10),
        (500, 64, 2, 3, "ip", 2, 5),
        (3000, 16, 4, 2, "ip", 1, 10),  # more blocks than warps
        (900, 65, 4, 2, "l2", 20, 10),  # the threshold comes from all blocks
        (1600, 70, 1, 2, "ip", 12, 3),  # from a sample, and rises on the way
        (33, 16, 4, 2, "l2", 20, 40),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_products_give_the_results_of_the_cpu(
    n: int, d: int, bits: float, memory: int, metric: str, nq: int, k: int
) -> None:
    _compare(n, d, bits, memory, metric, nq, k)


@pytest.mark.usefixtures("gpu")
def test_more_queries_than_shared_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqcore.gpu import product

    monkeypatch.setattr(product, "_SHARED", 9000)  # 32 queries at a time
    _compare(260, 40, 2, 2, "ip", 35, 5)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("share", "nq"), [(0.1, 3), (0.1, 12), (0.002, 12)])
def test_filters(share: float, nq: int) -> None:
    _compare(700, 64, 4, 2, "l2", nq, 10, np.random.default_rng(2).random(700) < share)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("nq", [2, 9])
def test_too_many_candidates_are_ranked_in_full(nq: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tqcore.gpu import product, search

    def ranked(layout: Any, rows: Any, q: Any, constants: Any, k: int, _: float, results: Any) -> None:
        for i in range(len(q)):
            own = None if constants is None else constants[i]
            results[0][i], results[1][i] = search._ranked(layout, rows, q[i], own, k)

    monkeypatch.setattr(product, "_ROOM", 16)
    monkeypatch.setattr(search, "_search_floats", ranked)
    _compare(300, 65, 4, 2, "l2", nq, 10)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("nq", [3, 12])
def test_queries_that_are_not_finite_are_refused(nq: int) -> None:
    from tqcore.gpu.layout import LANES, UNIT, CodeLayout, DeviceRows
    from tqcore.gpu.search import search

    layout = CodeLayout(TurboQuantIndex(32, 4, "ip")._vectors.quantizer, torch.device("cpu"))
    blocks = torch.zeros(2, layout.words // UNIT, LANES, UNIT, dtype=torch.int32)
    q = torch.zeros(nq, 32)
    q[2, 5] = torch.inf
    with pytest.raises(ValueError, match="row 2"):
        search(layout, DeviceRows(blocks, torch.ones(64), None, 64), q, None, 5, (6.0, 0.1))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("metric", "nq"), [("ip", 1), ("l2", 2), ("l2", 12)])
def test_queries_and_results_at_addresses(metric: str, nq: int) -> None:
    from tqcore.gpu.layout import LANES, UNIT, CodeLayout, DeviceRows
    from tqcore.gpu.product import fetch, search_bytes
    from tqcore.gpu.search import longest

    rng = np.random.default_rng(3)
    layout = CodeLayout(TurboQuantIndex(40, 4, metric)._vectors.quantizer, torch.device("cpu"))
    words = rng.integers(-(2**31), 2**31, (10, layout.words // UNIT, LANES, UNIT)).astype(np.int32)
    scale = torch.from_numpy(rng.random(320).astype(np.float32))
    rows = DeviceRows(torch.from_numpy(words), scale, scale + 1 if metric == "l2" else None, 305)
    given = torch.from_numpy(rng.standard_normal((nq, 40)).astype(np.float32))
    constants = given.double().square().sum(dim=1) if metric == "l2" else None
    lengths, status = longest(layout, rows), torch.tensor([nq, 0], dtype=torch.int32)

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(nq, 7), torch.zeros(nq, 7, dtype=torch.int64)

    expected, found, q = results(), results(), torch.zeros(nq, 40)
    addresses = torch.tensor([t.data_ptr() for t in (given, *found)])
    others = fetch(addresses, q)
    assert torch.equal(q, given)
    assert layout.bytes is not None
    for out in (expected, others):
        search_bytes(layout, layout.bytes, rows, q, constants, 7, lengths, out, status)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert (found[1] >= 0).all()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("d", [8, 9, 100, 384])
def test_rotation_is_that_of_the_cpu(d: int) -> None:
    from tqcore.gpu.rotation import hadamard_rotate, normalize, sign_words

    x = np.random.default_rng(1).standard_normal((3, d)).astype(np.float32) * 3
    x[1] = 0
    rotation = HadamardRotation(d, 7)
    signs = sign_words(rotation.signs)
    normal, norms = _core.normalize(x)
    y, our_norms = normalize(torch.from_numpy(x), signs)
    np.testing.assert_array_equal(our_norms.numpy(), norms)
    np.testing.assert_array_equal(y.numpy(), rotation.rotate(normal))
    back = hadamard_rotate(y, signs, inverse=True)
    np.testing.assert_array_equal(back.numpy(), rotation.unrotate(rotation.rotate(normal)))
