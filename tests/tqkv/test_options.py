"""Wrong use is told before anything happens."""

from __future__ import annotations

import pytest
import torch

from tqkv import TurboQuantCache
from tqkv.codec import StateCodec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, r"key_bits must be one of 2, 2.5, 3, 3.5, 4 .* got 5"),
        ({"bits": "4"}, r"key_bits must be one of .* got '4'"),
        ({"bits": True}, r"key_bits must be one of .* got True"),
        ({"value_bits": 1}, r"value_bits must be one of .* got 1"),
        ({"code": "prod", "bits": 2.5}, r"key_bits must be one of 2, 3, 4 for code 'prod', got 2.5"),
        ({"code": "pq"}, r"code must be one of 'chain', 'mse', 'prod', got 'pq'"),
        ({"memory": 4}, r"memory must be an integer from 2 to 3, got 4"),
        ({"key_scale": "max"}, r"key_scale must be one of .* got 'max'"),
        ({"code": "prod", "bits": 3, "key_scale": "unbiased"}, r"must be 'norm' for code 'prod'"),
        ({"recent_tokens": 100}, r"recent_tokens must be a multiple of 16, got 100"),
        ({"recent_tokens": -16}, r"recent_tokens must be an integer from 0 .* got -16"),
        ({"sink_tokens": 1.5}, r"sink_tokens must be an integer .* got 1.5"),
        ({"centre_keys": 1}, r"centre_keys must be True or False, got 1"),
        ({"skip_layers": "0"}, r"skip_layers must be layer indices, got '0'"),
        ({"skip_layers": [3]}, r"skip_layers must be indices of 3 layers, got 3"),
        ({"skip_layers": range(3)}, r"full-attention layer outside skip_layers = \[0, 1, 2\]"),
        (
            {"max_length": 100},
            r"max_length must be at least sink_tokens \+ recent_tokens \+ 16 = 148, got 100",
        ),
        ({"max_length": 100, "recent_tokens": 0}, r"recent_tokens must be at least 16 where max_length"),
        ({"seed": -1}, r"seed must be an integer"),
        ({"offloading": True}, r"offloading must be False"),
    ],
)
def test_arguments(qwen3, options, message):
    with pytest.raises(ValueError, match=message):
        TurboQuantCache(qwen3.config, **options)


def test_config_is_needed():
    with pytest.raises(ValueError, match="config must be a transformers configuration, got dict"):
        TurboQuantCache({})


def test_unknown_layer_types(qwen3):
    qwen3.config.layer_types = ["full_attention", "telepathy", "full_attention"]
    with pytest.raises(ValueError, match="telepathy"):
        TurboQuantCache(qwen3.config)


def test_no_full_attention(tiny):
    model = tiny("mistral", sliding_window=16)
    with pytest.raises(
        ValueError, match=r"must have a full-attention layer .* got full-attention layers \[\]"
    ):
        TurboQuantCache(model.config)


def test_head_dim_too_small():
    with pytest.raises(ValueError, match="head_dim must be at least 8, got 4"):
        StateCodec(4, 4.0, "chain", 2, "unbiased", 0, torch.device("cpu"))


def states(batch=1, heads=2, tokens=40, d=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(batch, heads, tokens, d, generator=generator).to(dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batch": 2},
            r"key_states must keep batch, heads and head_dim \(1, 2, 32\) of layer 0, got \(2, 2, 32\)",
        ),
        ({"heads": 4}, r"key_states must keep batch, heads and head_dim"),
        ({"d": 16}, r"key_states must keep batch, heads and head_dim"),
        (
            {"dtype": torch.bfloat16},
            r"key_states must stay torch.float32 on cpu in layer 0, got torch.bfloat16",
        ),
    ],
)
def test_states_must_stay_alike(qwen3, change, message):
    cache = TurboQuantCache(qwen3.config, recent_tokens=16)
    cache.update(states(), states(), 0)
    before = cache.get_seq_length()
    with pytest.raises(ValueError, match=message):
        cache.update(states(**{"tokens": 1} | change), states(**{"tokens": 1} | change), 0)
    assert cache.get_seq_length() == before


def test_keys_and_values_must_match(qwen3):
    cache = TurboQuantCache(qwen3.config)
    with pytest.raises(ValueError, match="equal batch, heads and tokens"):
        cache.update(states(tokens=4), states(tokens=5), 0)


def test_reset_takes_another_batch(qwen3):
    cache = TurboQuantCache(qwen3.config, recent_tokens=16)
    cache.update(states(), states(), 0)
    cache.reset()
    assert cache.get_seq_length() == 0
    cache.update(states(batch=3, dtype=torch.bfloat16), states(batch=3, dtype=torch.bfloat16), 0)
    assert cache.get_seq_length() == 40


def test_offloading_cannot_work(qwen3):
    cache = TurboQuantCache(qwen3.config)
    with pytest.raises(NotImplementedError, match="cannot be offloaded"):
        cache.offload(0)


def test_packed_states_that_nobody_read(qwen3, ids):
    qwen3.set_attn_implementation("turboquant")
    cache = TurboQuantCache(qwen3.config, recent_tokens=16)
    cache.update(states(), states(), 0)
    cache.update(states(tokens=1), states(tokens=1), 0)
    with pytest.raises(RuntimeError, match="another attention function received them"):
        cache.update(states(tokens=1), states(tokens=1), 0)


def test_unsupported_attention_arguments(qwen3):
    from tqkv.attention import turboquant_attention_forward

    x = states(tokens=3)
    with pytest.raises(ValueError, match="softcap must be None"):
        turboquant_attention_forward(qwen3.model.layers[0].self_attn, x, x, x, None, softcap=30.0)


def test_lengths_that_transformers_asks_for(qwen3):
    for options, length in (({}, -1), ({"max_length": 220}, 220)):
        cache = TurboQuantCache(qwen3.config, bits=4, **options)
        assert {layer.get_max_length() for layer in cache.packed_layers} == {length}
        assert {layer.get_max_cache_shape() for layer in cache.packed_layers} == {length}


def test_an_empty_layer(qwen3):
    cache = TurboQuantCache(qwen3.config, bits=4)
    layer = cache.packed_layers[0]
    layer.batch_select_indices(torch.tensor([0, 0]))
    assert not layer.is_initialized
    with pytest.raises(NotImplementedError, match="cannot be offloaded"):
        layer.prefetch()
    assert cache.effective_bits == 0
