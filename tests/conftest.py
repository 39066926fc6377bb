"""Test session set-up: test the installed package, and say which one and on which SIMD level."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the checkout first, whose tqcore has no compiled module unless installed with -e.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
# Last, so that `from paper import ...` works and the folder tests/tqcore hides nothing.
sys.path.append(str(ROOT / "tests"))

# Tests that run side by side do not wait for each other's OpenMP threads, those of torch and FAISS.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")


def pytest_configure(config: pytest.Config) -> None:
    """Stop at once, with one line, when the compiled module is missing."""
    try:
        import tqcore._core  # noqa: F401
    except ImportError as error:
        raise pytest.UsageError(f'install the project first: pip install ".[bench,dev]" ({error})') from error


def pytest_report_header(config: pytest.Config) -> str:
    """Name the tested package and its SIMD level."""
    import tqcore

    return f"tqcore: {Path(tqcore.__file__).parent}, SIMD level {tqcore.simd_level()}"


def _cuda_missing() -> str | None:
    """Return why CUDA cannot be used, None when it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu`, with the reason, where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _cuda_missing() if marked else None
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"gpu: {reason}"))
