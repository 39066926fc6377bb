"""The whole-model benchmark on tiny models: every method fills its cache and takes steps."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def program():
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("gpu_models")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3.6-27b"])
def test_every_method_steps(program, name):
    bench = program.Bench(program.random_model(name, True, torch.device("cpu")), 3.5, 1)
    for method in program._METHODS:
        row = program.speed(bench, method, 2, 320)
        assert "skipped" not in row, (method, row)
        assert row["tokens_per_second"] > 0


def test_packed_caches_hold_as_many_tokens_as_asked(program):
    bench = program.Bench(program.random_model("qwen3-8b", True, torch.device("cpu")), 3.5, 1)
    with torch.no_grad():
        for room in (None, 40):
            cache = bench.packed_cache(2, 320, room)
            assert {int(layer.get_seq_length()) for layer in cache.packed_layers} == {320}
            assert cache.packed_layers[0].view().packed > 100
        assert {layer.get_seq_length() for layer in bench.plain_cache("flash", 2, 320).layers} == {319}
