"""Concurrent calls of the core under ThreadSanitizer: no data race, and the answers of one thread alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tqcore import _core

pytestmark = pytest.mark.timeout(600)  # most of the core is compiled

LEVELS = [level for level in ("scalar", "avx2", "neon") if level in _core.simd_levels()]
SANITIZE = ["-std=gnu++20", "-O1", "-g1", "-fsanitize=thread", "-ffp-contract=off", "-Wno-psabi"]
REPORT = "WARNING: ThreadSanitizer: data race"


@pytest.fixture(scope="module")
def driver(request, tmp_path_factory):
    """The driver of tsan/ with the core, instrumented."""
    if os.environ.get("TQ_SIMD"):
        pytest.skip("TQ_SIMD is set: every level runs where it is not")
    root = request.config.rootpath
    sources = root / "tqcore" / "csrc"
    if not sources.is_dir():
        pytest.skip("not a checkout: the sources of the core are not here")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs g++ or clang++")
    folder = tmp_path_factory.mktemp("tsan")
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}")
    done = subprocess.run(
        [compiler, *SANITIZE, probe, "-o", folder / "probe"], capture_output=True, check=False
    )
    if done.returncode or launched([folder / "probe"]).returncode:
        pytest.skip("the compiler or the kernel of this system does not do ThreadSanitizer")
    cmake = (root / "CMakeLists.txt").read_text()
    have = [f"-DTQ_HAVE_{level.upper()}=1" for level in LEVELS]
    jobs = [
        (path, "baseline", have)
        for path in sorted(sources.glob("*.cpp"))
        if path.name != "module.cpp" and not path.name.startswith("kernels_")
    ]
    jobs.append((Path(__file__).with_name("tsan") / "driver.cpp", "baseline", []))
    for level in LEVELS:
        flags = re.search(rf"^\s*set\(tq_flags_{level}\s+([^)]*)\)", cmake, re.MULTILINE)[1]
        words = flags.replace('"', "").split()
        words += [f"-DTQ_LEVEL={level}", f"-DTQ_LEVEL_{level.upper()}=1"]
        jobs += [(path, level, words) for path in sorted(sources.glob("kernels_*.cpp"))]

    def compiled(job):
        path, level, flags = job
        target = folder / f"{level}-{path.stem}.o"
        built = subprocess.run(
            [compiler, *SANITIZE, f"-I{sources}", *flags, "-c", path, "-o", target],
            capture_output=True,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stderr
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compiled, jobs))
    program = folder / "driver"
    subprocess.run([compiler, "-fsanitize=thread", *objects, "-o", program, "-pthread"], check=True)
    return program


def launched(words):
    """Run without address randomization, which ThreadSanitizer's memory layout does not bear everywhere."""
    fixed = [shutil.which("setarch"), "-R"] if shutil.which("setarch") else []
    done = subprocess.run([*fixed, *words], capture_output=True, text=True, check=False)
    if done.returncode and "setarch" in done.stderr:  # forbidden in some containers
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done


@pytest.mark.parametrize("level", LEVELS)
def test_concurrent_calls_do_not_race(driver, level):
    done = launched([driver, level])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [level]
    assert "ThreadSanitizer" not in done.stderr


def test_a_race_would_be_reported(driver):
    done = launched([driver, LEVELS[0], "race"])
    assert done.returncode != 0
    assert REPORT in done.stderr
