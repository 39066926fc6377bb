"""The cache in models: the same tokens where nothing is packed, the same states whichever attention reads them."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from chunks import feed
from tqkv import TurboQuantCache

IMPLEMENTATIONS = ("turboquant", "sdpa", "eager")


def generate(model, ids, cache, **options):
    options = {"max_new_tokens": 24, "do_sample": False} | options
    return model.generate(ids, past_key_values=cache, **options)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_same_tokens_while_nothing_is_packed(model, ids, implementation):
    model.set_attn_implementation("sdpa")
    want = generate(model, ids, DynamicCache(config=model.config))
    model.set_attn_implementation(implementation)
    cache = TurboQuantCache(model.config, bits=2, recent_tokens=256)
    assert torch.equal(generate(model, ids, cache), want)
    assert cache.memory()["codes"] == 0
    assert cache.effective_bits == 0


def test_generate_with_packed_tokens(model, ids):
    """At 4 bits few of the tokens of a random model may change; prompts stay exact."""
    model.set_attn_implementation("turboquant")
    want = generate(model, ids, DynamicCache(config=model.config))
    cache = TurboQuantCache(model.config, bits=4, recent_tokens=16)
    got = generate(model, ids, cache)
    assert torch.equal(got[:, :151], want[:, :151])
    assert cache.get_seq_length() == 173
    # 4 sinks and 16 to 32 recent tokens are left in full precision.
    assert all(layer.packed == 144 for layer in cache.packed_layers)
    assert cache.stats.fallback == 23 * len(cache.packed_layers)
    assert cache.stats.plain == len(cache.packed_layers)


@pytest.mark.parametrize("options", [
    {"bits": 3.5}, {"bits": 2, "code": "mse"}, {"bits": 2.5, "code": "mse"}, {"bits": 3, "code": "prod"},
    {"key_bits": 4, "value_bits": 2, "memory": 3}, {"bits": 3, "sink_tokens": 0, "recent_tokens": 0},
    {"bits": 2, "value_scale": "least_squares", "centre_keys": False}, {"bits": 2, "skip_layers": [-1]},
])  # fmt: skip
@pytest.mark.parametrize("chunks", [[100] + [1] * 50, [37, 1, 1, 50, 1, 60], [1] * 40 + [110], [3, 100, 47]])
def test_packed_attention_is_attention_over_decoded_states(model, ids, options, chunks, checked):
    """Blocks, rotated coordinates and the mean kept apart change nothing: at most twice plain float32's error."""
    model.set_attn_implementation("turboquant")
    cache = TurboQuantCache(model.config, **{"recent_tokens": 16} | options)
    feed(model, ids, cache, chunks)
    assert cache.get_seq_length() == 150
    assert len(checked) == (len(chunks) - 1) * len(cache.packed_layers)
    assert checked[-1][0] > 0 or chunks[0] == 1


@pytest.mark.parametrize("options", [{"bits": 3.5}, {"bits": 3, "code": "prod"}])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_other_attention_gets_decoded_states(model, ids, options, implementation):
    """The next token is that of packed attention up to rounding, since both see the same states."""
    results = []
    for name in ("turboquant", implementation):
        model.set_attn_implementation("sdpa")
        cache = TurboQuantCache(model.config, recent_tokens=16, **options)
        feed(model, ids, cache, [140])
        model.set_attn_implementation(name)
        results.append(feed(model, ids[:, 140:], cache, [1, 3]))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_values_with_a_mean(qwen3, ids, checked):
    """A mean of the values, which a file may hold, is put back once for all packed tokens."""
    qwen3.set_attn_implementation("turboquant")
    cache = TurboQuantCache(qwen3.config, bits=3, recent_tokens=16)
    feed(qwen3, ids[:, :100], cache, [100])
    for number, layer in enumerate(cache.packed_layers):
        generator = torch.Generator().manual_seed(number)
        layer.value_store.codec.mean = torch.randn(2, 1, 64, generator=generator)
    checked.clear()
    feed(qwen3, ids[:, 100:], cache, [7, 1])
    assert len(checked) == 2 * len(cache.packed_layers)
    assert all(packed > 0 for packed, _ in checked)


def test_packing_costs_little_and_something(qwen3, ids):
    """Packed logits are near the full-precision ones, nearer with more bits, and not equal to them."""
    qwen3.set_attn_implementation("turboquant")
    full = feed(qwen3, ids, DynamicCache(config=qwen3.config), [100] + [1] * 50)
    errors = [
        (
            feed(qwen3, ids, TurboQuantCache(qwen3.config, bits=bits, recent_tokens=16), [100] + [1] * 50)
            - full
        )
        .square()
        .mean()
        .item()
        for bits in (2, 3, 4)
    ]
    assert 0 < errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.05 * full.var().item()


def test_blocks_are_encoded_once(qwen3, ids, monkeypatch):
    """Every token goes through the encoder exactly once per layer and side, and its bytes never change."""
    qwen3.set_attn_implementation("turboquant")
    cache = TurboQuantCache(qwen3.config, bits=3, recent_tokens=16)
    feed(qwen3, ids, cache, [60])
    layer = cache.packed_layers[0]
    seen = [layer.key_store.rows(0, layer.packed).clone(), layer.packed]
    from tqkv.codec import StateCodec

    tokens = []
    encode = StateCodec.encode
    monkeypatch.setattr(StateCodec, "encode", lambda self, x: tokens.append(x.shape[2]) or encode(self, x))
    with torch.no_grad():
        for step in range(60, 110):
            qwen3(ids[:, step : step + 1], past_key_values=cache)
        qwen3(ids[:, 110:], past_key_values=cache)
    assert sum(tokens) == (layer.packed - seen[1]) * 2 * len(cache.packed_layers)
    assert torch.equal(layer.key_store.rows(0, seen[1]), seen[0])


def test_prompt_is_given_back_as_it_came(qwen3):
    """No copy of a prompt: what attention gets are the tensors that came in."""
    cache = TurboQuantCache(qwen3.config, recent_tokens=16)
    keys, values = torch.randn(1, 2, 200, 32), torch.randn(1, 2, 200, 32)
    got = cache.update(keys, values, 0)
    assert got[0] is keys
    assert got[1] is values


def test_memory_of_a_long_context():
    """Codes and scales of 32,768 tokens, 16 layers of 4 heads of 256: 456 MiB at 3.5 bits, 328 MiB at 2.5."""
    from transformers import Qwen3Config

    config = Qwen3Config(
        num_hidden_layers=1, head_dim=256, num_attention_heads=24, num_key_value_heads=4, hidden_size=64
    )
    states = torch.randn(1, 4, 2048, 256, dtype=torch.bfloat16)
    for bits, limit in ((3.5, 456), (2.5, 328)):
        cache = TurboQuantCache(config, bits=bits)
        cache.update(states, states, 0)
        parts = cache.memory()
        packed = cache.packed_layers[0].packed
        assert packed == 2048 - 4 - 128 - 12
        assert parts["codes"] + parts["scales"] == packed * 4 * 2 * (32 * bits + 2)
        assert (parts["codes"] + parts["scales"]) / packed * 32768 * 16 <= limit * 2**20
        assert parts["spare"] == 16 * 0
        assert parts["window"] == (4 + 128 + 16) * 4 * 256 * 2 * 2
        assert cache.effective_bits == bits + 16 / 256
        assert parts["total"] == sum(size for name, size in parts.items() if name != "total")


def test_growth_leaves_little_spare(qwen3):
    cache = TurboQuantCache(qwen3.config, recent_tokens=16)
    states = torch.randn(1, 2, 3000, 32)
    cache.update(states, states, 0)
    assert cache.memory()["spare"] == 0
    for _ in range(40):
        cache.update(states[:, :, :1], states[:, :, :1], 0)
    layer = cache.packed_layers[0]
    assert layer.packed < layer.key_store.capacity <= layer.packed + 272


def test_skipped_layers_stay_exact(qwen3):
    cache = TurboQuantCache(qwen3.config, skip_layers=[0, -1])
    assert [layer.layer_idx for layer in cache.packed_layers] == [1]
    assert [type(layer).__name__ for layer in cache.layers] == [
        "DynamicLayer",
        "TurboQuantLayer",
        "DynamicLayer",
    ]


def test_layers_by_type(tiny):
    names = [type(layer).__name__ for layer in TurboQuantCache(tiny("hybrid").config).layers]
    assert names == ["LinearAttentionLayer", "TurboQuantLayer"] * 2
    names = [type(layer).__name__ for layer in TurboQuantCache(tiny("sliding").config).layers]
    assert names == ["TurboQuantLayer"] * 2 + ["DynamicSlidingWindowLayer"] * 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_chunked_prefill_in_blocks(qwen3, ids, implementation, monkeypatch):
    """Small blocks and few queries a step give what large ones give."""
    qwen3.set_attn_implementation(implementation)
    options = {"bits": 3, "recent_tokens": 16}
    want = feed(qwen3, ids, TurboQuantCache(qwen3.config, **options), [70, 80])
    monkeypatch.setattr("tqkv.attention._BLOCK", 16)
    monkeypatch.setattr("tqkv.attention._SCORES", 16 * 2 * 4 * 7)
    got = feed(qwen3, ids, TurboQuantCache(qwen3.config, **options), [70, 80])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_bfloat16(tiny, ids):
    """bf16 states: packed attention errs no more than twice as much as eager attention over decoded bf16 states."""
    model = tiny("qwen3")
    cache = TurboQuantCache(model.config, bits=4, recent_tokens=16)
    model.set_attn_implementation("eager")
    want = feed(model, ids, cache, [100] + [1] * 20)
    model = model.to(torch.bfloat16)
    errors = []
    for implementation in ("turboquant", "eager"):
        model.set_attn_implementation(implementation)
        cache = TurboQuantCache(model.config, bits=4, recent_tokens=16)
        errors.append((feed(model, ids, cache, [100] + [1] * 20).float() - want).square().mean().sqrt())
    assert errors[0] <= 2 * errors[1]
