"""The decode kernel compiled for the CPU, a fiber a thread, against the reference in float32."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from packed import random_problem  # noqa: E402
from tqkv.kernels import decode, reference, schedule  # noqa: E402

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="needs Linux and g++ with C++20"
)

_ENTRY = """
static Problem problem;
static void thread_() { decode(problem); end_thread(); }
extern "C" void run(const Problem* p, int x, int y, int z, int threads) {
    problem = *p;
    run_grid(thread_, {x, y, z}, threads);
}
"""


class _Emulator:
    """Compiles the kernel for the CPU in place of the device's compiler."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._built = folder, {}

    def module(self, _source: str, options: tuple[str, ...]) -> _Emulator:
        if options not in self._built:
            stem = self._folder / f"m{len(self._built)}"
            names = [name for name in decode._SOURCES if name != "decode_machine"]
            folder = files("tqkv").joinpath("kernels")
            parts = [folder.joinpath(f"{name}.cu").read_text(encoding="utf-8") for name in names]
            stem.with_suffix(".cpp").write_text("\n".join(['#include "machine.h"', *parts, _ENTRY]))
            command = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-ffp-contract=off", *options]
            shim = Path(__file__).parent / "cuda"
            subprocess.run([*command, f"-I{shim}", f"{stem}.cpp", "-o", f"{stem}.so"], check=True)
            self._built[options] = ctypes.CDLL(f"{stem}.so")
        self._chosen = self._built[options]
        return self

    def kernel(self, _name: str) -> Callable[..., None]:
        library = self._chosen

        def launch(
            grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared: int = 0
        ) -> None:
            assert shared <= 227 << 10
            library.run(ctypes.byref(args[0]), *grid, block[0])

        return launch


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> _Emulator:
    return _Emulator(tmp_path_factory.mktemp("decode"))


@pytest.fixture(autouse=True)
def device(emulator: _Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device of six multiprocessors that runs the kernel and is left as it was."""
    scratches = []

    def scratch(*sizes: Any) -> tuple[torch.Tensor, ...]:
        scratches.append(decode._new_scratch(*sizes))
        return scratches[-1]

    monkeypatch.setattr(decode, "compile_module", emulator.module)
    monkeypatch.setattr(decode, "_check", lambda *_: None)
    monkeypatch.setattr(decode, "_multiprocessors", lambda _: 6)
    monkeypatch.setattr(decode, "_scratch", scratch)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    decode._kernel.cache_clear()
    yield
    for sums, scalars, counters in scratches:
        assert (sums == -1).all()
        assert (scalars == -1).all()
        assert not counters.any()


def relative_error(result, truth):
    return float((result.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("d", "heads", "bits", "value_bits"),
    [
        *[(64, 6, 3.5, 2.5), (64, 3, 2.5, 3.5), (128, 6, 2.5, 3.0), (128, 4, 4.0, 3.5)],
        *[(256, 6, 3.5, 3.5), (256, 2, 3.0, 2.0)],
    ],
)
def test_rates_and_widths(d, heads, bits, value_bits):
    arguments, keywords = random_problem(
        2, heads, 1, 1, d, [333, 17], bits=bits, value_bits=value_bits, mean=True, extra=5
    )
    truth = reference.decode_attention(*arguments, **keywords)
    assert relative_error(decode.decode_attention(*arguments, **keywords), truth) < 2e-3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-3), (torch.bfloat16, 6e-3)])
def test_masks_and_several_new_tokens(dtype, bound):
    arguments, keywords = random_problem(2, 10, 2, 2, 128, [0, 700], extra=20, dtype=dtype)
    keywords["extra_lengths"] = torch.tensor([20, 7], dtype=torch.int32)
    keywords["starts"] = torch.tensor([0, 40], dtype=torch.int32)
    keywords["extra_mask"] = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < 0.7
    truth = reference.decode_attention(arguments[0].float(), *arguments[1:], **keywords)
    assert relative_error(decode.decode_attention(*arguments, **keywords), truth) < bound


@pytest.mark.parametrize(
    ("d", "heads", "dtype", "bound"),
    [
        *[(128, 7, torch.bfloat16, 6e-3), (128, 4, torch.bfloat16, 6e-3)],
        *[(64, 6, torch.float16, 2e-3), (256, 6, torch.bfloat16, 6e-3)],
    ],
)
def test_16_bits_and_what_lies_behind_the_tokens(d, heads, dtype, bound):
    arguments, keywords = random_problem(1, heads, 1, 1, d, [100], dtype=dtype, extra=140)
    keywords["extra_mask"] = torch.arange(140)[None] % 7 > 1
    truth = reference.decode_attention(arguments[0].float(), *arguments[1:], **keywords)
    for states in arguments[1:3]:
        states.scales[:, :, 100:] = torch.nan
    for name in ("extra_k", "extra_v"):
        keywords[name][:, :, ::7] = torch.nan
    result = decode.decode_attention(*arguments, **keywords)
    assert result.dtype == dtype
    assert relative_error(result, truth) < bound


@pytest.mark.parametrize("d", [64, 256])
def test_queries_that_are_given_in_the_basis_of_the_keys(d):
    arguments, keywords = random_problem(2, 6, 2, 2, d, [90, 200], extra=9, mean=True)
    keywords["key_queries"] = torch.randn(2, 6, 2, d, generator=torch.Generator().manual_seed(1))
    truth = reference.decode_attention(*arguments, **keywords)
    assert relative_error(decode.decode_attention(*arguments, **keywords), truth) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chosen", [(1, 2), (1, 3), (2, 4), (3, 1)])
def test_blocks_that_serve_several_windows(chosen, dtype, monkeypatch):
    monkeypatch.setattr(schedule, "choose", lambda *_: chosen)
    for heads, patient in ((6, 100), (2, 6)):  # multiprocessors; fewer than blocks, then enough
        monkeypatch.setattr(decode, "_multiprocessors", lambda _, n=patient: n)
        arguments, keywords = random_problem(2, heads, 2, 1, 64, [40, 80], extra=20, dtype=dtype)
        keywords["extra_lengths"] = torch.tensor([20, 7], dtype=torch.int32)
        truth = reference.decode_attention(arguments[0].float(), *arguments[1:], **keywords)
        assert relative_error(decode.decode_attention(*arguments, **keywords), truth) < 6e-3


def test_nan_in_any_state_shows():
    (q, keys, values, lengths), keywords = random_problem(
        1, 8, 2, 1, 128, [40], extra=8, dtype=torch.bfloat16
    )
    q[0, 1, 0, 5] = torch.nan
    keywords["extra_v"][0, 1, 3, 100] = torch.nan
    result = decode.decode_attention(q, keys, values, lengths, **keywords)
    assert result[0, 1].isnan().all()
    assert result[0, 4:].isnan().all()
    assert result[0, [0, 2, 3]].isfinite().all()
