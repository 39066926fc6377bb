"""The NEON kernels, compiled for aarch64 and run under emulation, give this machine's bits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tqcore import _core, packing
from tqcore.chain import chain_tables
from tqcore.codebook import lloyd_max
from tqcore.config import CHAIN_RATES
from tqcore.rotation import HadamardRotation

pytestmark = pytest.mark.timeout(900)  # a whole cross compilation and an emulated machine

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PACKAGES = {COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user"}
LEVELS = ("neon", "scalar")
# name -> (scalar bits or 0, d, rate, memory, parts, head words, rows, queries, metric); 17 rows leave one in a block
CASES = {
    "chain_1": (0, 100, 1, 2, 1, 0, 17, 5, "ip"),
    "chain_2_l2": (0, 127, 2, 2, 1, 0, 49, 7, "l2"),
    "chain_2.5_m3": (0, 40, 2.5, 3, 1, 0, 33, 1, "ip"),
    "chain_4_d9": (0, 9, 4, 2, 1, 0, 16, 2, "l2"),
    "chain_4_many": (0, 64, 4, 2, 1, 0, 700, 9, "ip"),
    "chain_8": (0, 72, 8, 2, 1, 0, 20, 4, "ip"),
    "chain_0.5": (0, 64, 0.5, 2, 1, 0, 32, 3, "ip"),
    "two_parts": (0, 128, 3, 2, 2, 0, 31, 6, "ip"),
    "layers": (0, 142, 2, 2, 2, 5, 500, 6, "l2"),
    "scalar_3": (3, 30, 3, 1, 1, 0, 18, 3, "l2"),
}
DTYPES = {
    "codes": np.uint8,
    "dots": np.float64,
    "norms": np.float64,
    "decoded": np.float32,
    "rotated": np.float32,
    "back": np.float32,
    "projected": np.float32,
    "normal": np.float32,
    "normal_norms": np.float64,
    "blocks": np.uint32,
    "distances": np.float32,
    "ids": np.int64,
    "range_distances": np.float32,
    "range_ids": np.int64,
}


def settings(name, cmake):
    """The words of `set(name ...)` in a CMake file."""
    found = re.search(rf"^\s*set\({name}\s+([^)]*)\)", cmake, re.MULTILINE)
    assert found, f"CMakeLists.txt sets no {name}"
    return found[1].replace('"', "").split()


@pytest.fixture(scope="module")
def driver(request, tmp_path_factory):
    """The driver of neon/, cross-compiled with the flags of CMakeLists.txt."""
    root = request.config.rootpath
    sources = root / "tqcore" / "csrc"
    if not sources.is_dir():
        pytest.skip("not a checkout: the sources of the core are not here")
    absent = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if absent:
        pytest.skip(f"needs the Debian packages {' and '.join(absent)}")
    cmake = (root / "CMakeLists.txt").read_text()
    common = re.findall(r"set\(tq_flags (-O3[^)]*)\)", cmake)[0].split()
    jobs = [(path, "baseline", ["-DTQ_HAVE_SCALAR=1", "-DTQ_HAVE_NEON=1"]) for path in sources.glob("*.cpp")]
    jobs = [job for job in jobs if job[0].name != "module.cpp" and not job[0].name.startswith("kernels_")]
    jobs.append((Path(__file__).with_name("neon") / "driver.cpp", "baseline", []))
    for level in LEVELS:
        flags = [
            f"-DTQ_LEVEL={level}",
            f"-DTQ_LEVEL_{level.upper()}=1",
            *settings(f"tq_flags_{level}", cmake),
        ]
        jobs += [(path, level, flags) for path in sources.glob("kernels_*.cpp")]
    folder = tmp_path_factory.mktemp("neon")

    def compiled(job):
        path, level, flags = job
        target = folder / f"{level}-{path.stem}.o"
        words = ["-std=gnu++20", *common, "-Wno-psabi", f"-I{sources}", *flags, "-c", path, "-o", target]
        run([COMPILER, *words])
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # The order of CMakeLists.txt: the linker keeps the first copy of an inline function.
        objects = list(pool.map(compiled, jobs))
    program = folder / "driver"
    run([COMPILER, "-static", *objects, "-o", program])
    return program


def run(words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stderr}"
    return done.stdout


def make_case(name, folder):
    """Inputs as files for the driver, and what this machine's core makes of them."""
    scalar_bits, d, rate, memory, parts, head_words, n, nq, metric = CASES[name]
    rng = np.random.default_rng(len(name) + d)
    p, q = (0, 0) if scalar_bits else CHAIN_RATES[rate]
    tables = lloyd_max(d, scalar_bits) if scalar_bits else chain_tables(rate, memory)
    inputs = {
        "tables": np.ascontiguousarray(tables, dtype=np.float32),
        "x": rng.standard_normal((n, d), dtype=np.float32),
        "signs": HadamardRotation(d, 1).signs,
        "matrix": rng.standard_normal((d, 8), dtype=np.float32),
        "queries": rng.standard_normal((nq, d), dtype=np.float32),
        "scale": rng.uniform(0.5, 2, n).astype(np.float32),
        "squared_norm": rng.uniform(0.5, 2, n).astype(np.float32) * np.float32(d),
        "constants": rng.uniform(1, 2, nq) * d,
        "radius": np.float32([2.5 * d if metric == "l2" else 1.5 * d]),
    }
    inputs["x"][0] = 0
    inputs["x"][-1] *= np.float32(1e-41)
    k, l2 = min(n + 1, 12), metric == "l2"
    folder.mkdir()
    shape = np.int32([scalar_bits, d, p, q, memory, parts, head_words, n, nq, k, l2])
    for key, values in {**inputs, "shape": shape}.items():
        np.ascontiguousarray(values).tofile(folder / key)
    if scalar_bits:
        code = _core.scalar_code(d, scalar_bits, inputs["tables"])
    else:
        one = _core.chain_code(d // parts, p, q, inputs["tables"])
        code = one if parts == 1 else _core.join_codes([one] * parts, head_words)
    before = _core.simd_level()
    _core.set_simd("scalar")  # blocks are laid out as NEON has them
    try:
        return expected_outputs(code, inputs, parts, k, l2)
    finally:
        _core.set_simd(before)


def expected_outputs(code, inputs, parts, k, l2):
    x, signs, n = inputs["x"], inputs["signs"], len(inputs["x"])
    codes, dots, norms = _core.encode(code, x, signs if parts == 1 else None, 1)
    blocks = np.zeros(packing.blocks_for(n, code.head_size), np.uint32)
    packing.pack_rows(blocks, 0, codes[:, : code.head_size])
    stored = _core.Stored()
    stored.blocks, stored.scale, stored.n = blocks, inputs["scale"], n
    if l2:
        stored.squared_norm = inputs["squared_norm"]
    if code.head_size < code.code_size:
        stored.tails = np.ascontiguousarray(codes[:, code.head_size :])
        stored.head_share, stored.deviations = 0.5, 1.0
    asked = (code, stored, inputs["queries"], inputs["constants"])
    distances, ids = _core.search(*asked, k, 1)
    _, range_distances, range_ids = _core.range_search(*asked, float(inputs["radius"][0]), 1)
    rotated = _core.hadamard_rotate(x, signs, False, 1)
    normal, normal_norms = _core.normalize(x, 1)
    return {
        "codes": codes,
        "dots": dots,
        "norms": norms,
        "decoded": _core.decode(code, codes, 1),
        "rotated": rotated,
        "back": _core.hadamard_rotate(rotated, signs, True, 1),
        "projected": _core.project(x, inputs["matrix"], 1),
        "normal": normal,
        "normal_norms": normal_norms,
        "blocks": blocks,
        "distances": distances,
        "ids": ids,
        "range_distances": range_distances,
        "range_ids": range_ids,
    }


@pytest.fixture(scope="module")
def outcomes(driver, tmp_path_factory):
    """For each case what this machine gives, and the folder with what the emulated one gave."""
    parent = tmp_path_factory.mktemp("cases")
    folders = {name: parent / name for name in CASES}
    expected = {name: make_case(name, folder) for name, folder in folders.items()}
    for level in LEVELS:
        said = run([EMULATOR, "-cpu", "max", driver, level, *folders.values()])
        assert said.strip() == level
    return expected, folders


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_emulated_core_gives_the_same_bits(outcomes, name, level):
    expected, folders = outcomes
    for key, dtype in DTYPES.items():
        here = np.ascontiguousarray(expected[name][key])
        assert here.dtype == dtype, key
        there = np.fromfile(folders[name] / f"{level}.{key}", dtype=dtype)
        unsigned = np.dtype(f"u{dtype().itemsize}")  # bits, so that -0.0 differs from 0.0
        np.testing.assert_array_equal(there.view(unsigned), here.ravel().view(unsigned), err_msg=key)


def test_cases_find_rows_by_radius(outcomes):
    expected, _ = outcomes
    found = [len(case["range_ids"]) for case in expected.values()]
    assert sum(count > 0 for count in found) >= len(CASES) // 2
