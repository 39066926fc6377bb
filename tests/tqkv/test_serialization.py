"""Caches that go through a file continue as if they had not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tqkv import TurboQuantCache
from tqkv.serialization import CacheFileError


def forward(model, ids, cache):
    with torch.no_grad():
        return model(ids, past_key_values=cache).logits


@pytest.mark.parametrize("tokens", [3, 30, 120])
@pytest.mark.parametrize("options", [
    {"bits": 3.5}, {"code": "prod", "bits": 3}, {"code": "mse", "bits": 2.5, "skip_layers": [1]},
])  # fmt: skip
def test_going_on(model, ids, tmp_path, tokens, options):
    model.set_attn_implementation("turboquant")
    cache = TurboQuantCache(model.config, recent_tokens=16, **options)
    forward(model, ids[:, :tokens], cache)
    cache.save(tmp_path / "cache.safetensors")
    loaded = TurboQuantCache.load(tmp_path / "cache.safetensors", model.config)
    assert loaded.options == cache.options
    assert loaded.get_seq_length() == tokens
    for start, stop in ((tokens, tokens + 1), (tokens + 1, 150)):
        want, got = (forward(model, ids[:, start:stop], c) for c in (cache, loaded))
        torch.testing.assert_close(got, want)


def test_empty(qwen3, tmp_path):
    TurboQuantCache(qwen3.config, bits=2).save(tmp_path / "empty")
    assert TurboQuantCache.load(tmp_path / "empty", qwen3.config).get_seq_length() == 0


@pytest.fixture
def saved(qwen3, ids, tmp_path):
    cache = TurboQuantCache(qwen3.config, recent_tokens=16)
    forward(qwen3, ids, cache)
    path = tmp_path / "cache"
    cache.save(path)
    return path


def rewritten(path, change):
    """The file with its header and tensors passed through `change`."""
    with safe_open(path, framework="pt") as stream:
        header = json.loads(stream.metadata()["tqkv"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, metadata={"tqkv": json.dumps(header)})


def test_files_are_replaced_whole(saved, qwen3, monkeypatch):
    before = saved.read_bytes()
    cache = TurboQuantCache.load(saved, qwen3.config)

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        cache.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["cache"]


def test_damage_is_found(saved, qwen3):
    def flip(_, tensors):
        tensors["layers.1.value_codes"][0, 0, 5, 3] ^= 1

    rewritten(saved, flip)
    with pytest.raises(CacheFileError, match=r"another checksum for layers.1.value_codes"):
        TurboQuantCache.load(saved, qwen3.config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version must be 1 or 2, got 3"),
        ({"tables": "00000000"}, "tables must be those of this version"),
    ],
)
def test_other_versions(saved, qwen3, change, message):
    rewritten(saved, lambda header, _: header.update(change))
    with pytest.raises(CacheFileError, match=message):
        TurboQuantCache.load(saved, qwen3.config)


def test_files_from_before_plans(saved, qwen3):
    """Version 1 has no option of that name."""

    def older(header, _):
        header["version"] = 1
        del header["options"]["key_plan"]

    rewritten(saved, older)
    cache = TurboQuantCache.load(saved, qwen3.config)
    assert cache.options.key_plan == "oblivious"
    assert cache.get_seq_length() == 150


def test_other_files(tmp_path, qwen3):
    save_file({"x": torch.zeros(1)}, tmp_path / "x")
    (tmp_path / "y").write_bytes(b"no tensors here")
    for name in "xy":
        with pytest.raises(CacheFileError, match="must be a saved TurboQuantCache"):
            TurboQuantCache.load(tmp_path / name, qwen3.config)


def test_other_models(saved, tiny):
    with pytest.raises(CacheFileError, match="config must be that of the saved cache with layers"):
        TurboQuantCache.load(saved, tiny("hybrid").config)
