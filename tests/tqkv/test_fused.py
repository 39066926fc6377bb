"""What the fused kernel is given, with its reference in its place: the same attention as over decoded states."""

from __future__ import annotations

import pytest
import torch

from chunks import feed
from tqkv import TurboQuantCache
from tqkv.config import CacheOptions
from tqkv.fused import layouts


@pytest.fixture
def fused(monkeypatch, checked):
    """The reference in the kernel's place, on the CPU; the list counts what `checked` counts."""
    from tqkv.kernels import reference

    monkeypatch.setattr("tqkv.fused._kernel", lambda device: reference.decode_attention)
    return checked


@pytest.mark.parametrize("options", [
    {"bits": 3}, {"bits": 2, "code": "mse"}, {"key_bits": 4, "value_bits": 2}, {"bits": 3, "max_length": 200},
    {"bits": 3, "sink_tokens": 0, "recent_tokens": 0}, {"bits": 4, "centre_keys": False},
])  # fmt: skip
@pytest.mark.parametrize("padded", [0, 2, 40])
def test_attention(tiny, ids, options, padded, fused):
    """Single tokens, few tokens, padding on the left, growing and fixed caches."""
    model = tiny("qwen3")
    model.set_attn_implementation("turboquant")
    mask = torch.ones_like(ids)
    mask[1, :padded] = 0
    cache = TurboQuantCache(model.config, **{"recent_tokens": 16} | options)
    chunks = [100, *[1] * 20] + ([] if "max_length" in options else [3, 1, 5])
    feed(model, ids, cache, chunks, mask)
    assert cache.stats.fused == (len(chunks) - 1) * 3 == len(fused)
    assert cache.stats.fallback == 0


def test_long_chunks_decode(tiny, ids, fused):
    model = tiny("qwen3")
    model.set_attn_implementation("turboquant")
    cache = TurboQuantCache(model.config, bits=3, recent_tokens=16)
    feed(model, ids, cache, [100, 50])
    assert (cache.stats.fused, cache.stats.fallback) == (0, 3)


def test_holes_in_the_mask_decode(tiny, ids, fused):
    """Padding on the right ends up inside the sequence, which the kernel does not mask."""
    model = tiny("qwen3")
    model.set_attn_implementation("turboquant")
    mask = torch.ones_like(ids)
    mask[1, 60:80] = 0
    cache = TurboQuantCache(model.config, bits=3, recent_tokens=16)
    feed(model, ids, cache, [100, 1, 1], mask)
    assert (cache.stats.fused, cache.stats.fallback) == (0, 6)


@pytest.mark.parametrize(
    ("options", "dims", "fused"),
    [
        ({}, (128, 128), True),
        ({}, (256, 256), True),
        ({}, (64, 64), True),
        ({}, (80, 80), False),
        ({}, (128, 64), False),
        ({}, (96, 96), False),
        ({"memory": 3}, (128, 128), False),
        ({"code": "mse", "bits": 4}, (128, 128), True),
        ({"code": "mse", "bits": 3}, (128, 128), False),
        ({"code": "mse", "key_bits": 4, "value_bits": 2}, (128, 128), True),
        ({"code": "prod", "bits": 4}, (128, 128), False),
    ],
)
def test_what_is_fused(qwen3, options, dims, fused):
    cache = TurboQuantCache(qwen3.config, **options)
    assert isinstance(cache.options, CacheOptions)
    orders = layouts(cache.options, *dims)
    assert all(order is not None for order in orders) == fused
    assert any(order is not None for order in orders) == fused
