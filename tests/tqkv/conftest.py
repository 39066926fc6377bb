"""Tiny models with random weights, one of each architecture that matters."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "attention_dropout": 0.0,
}


def _tiny(name: str, **changes):
    """A tiny model: "llama", "qwen3", "mistral" (half of its layers sliding), "hybrid" (Gated DeltaNet)."""
    options = _SIZES | {"num_hidden_layers": 3}
    if name == "llama":
        kind, config = "LlamaForCausalLM", transformers.LlamaConfig(**options | changes)
    elif name == "qwen3":
        kind, config = "Qwen3ForCausalLM", transformers.Qwen3Config(**options | {"head_dim": 64} | changes)
    elif name == "mistral":
        options |= {"sliding_window": None}
        kind, config = "MistralForCausalLM", transformers.MistralConfig(**options | changes)
    elif name == "sliding":
        options |= {
            "num_hidden_layers": 4,
            "head_dim": 64,
            "use_sliding_window": True,
            "sliding_window": 24,
            "max_window_layers": 2,
        }
        kind, config = "Qwen3ForCausalLM", transformers.Qwen3Config(**options | changes)
    else:
        options |= {
            "num_hidden_layers": 4,
            "head_dim": 64,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        }
        kind, config = "Qwen3_5ForCausalLM", transformers.Qwen3_5TextConfig(**options | changes)
    torch.manual_seed(7)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        # Random weights of the usual size attend almost evenly, which would hide mistakes.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return model


@pytest.fixture
def tiny():
    """The maker of models, for a test that needs a certain one."""
    return _tiny


@pytest.fixture(params=["llama", "qwen3", "mistral", "sliding", "hybrid"])
def model(request):
    return _tiny(request.param)


@pytest.fixture
def qwen3():
    return _tiny("qwen3")


@pytest.fixture
def ids():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(2, 97, (2, 150), generator=generator)


def _dense(query, view, mask, scaling, dtype):
    """Attention in `dtype` over the decoded states of a view, and nothing clever."""
    layer, view = view.layer, view.settled()
    sides = []
    for held, store in ((view.keys, layer.key_store), (view.values, layer.value_store)):
        packed = store.codec.decode_rotated(store.rows(0, view.packed), store.scalars[..., : view.packed])
        packed = packed.to(dtype) @ store.codec.basis.mT.to(dtype)
        if store.codec.mean is not None:
            packed = packed + store.codec.mean.to(dtype)
        held = held.to(dtype)
        whole = torch.cat([held[:, :, : view.sinks], packed, held[:, :, view.sinks :]], dim=2)
        sides.append(whole.repeat_interleave(query.shape[1] // held.shape[1], dim=1))
    queries, keys = query.shape[2], sides[0].shape[2]
    logits = query.to(dtype) @ sides[0].transpose(2, 3) * scaling
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
    if mask is not None and mask.dtype != torch.bool:
        logits = logits + mask
    elif mask is not None:
        seen = seen & (mask[:, None, None] if mask.ndim == 2 else mask)[..., :keys]
    logits = logits.masked_fill(~seen, -torch.inf)
    weights = logits.softmax(-1).nan_to_num(0.0)
    return weights @ sides[1]


@pytest.fixture
def checked(monkeypatch):
    """Compare every attention over packed states with float64; the list counts them."""
    import tqkv.attention

    inner, seen = tqkv.attention.packed_attention, []

    def compared(query, view, mask, scaling):
        got = inner(query, view, mask, scaling)
        want = _dense(query, view, mask, scaling, torch.float64)
        error = (_dense(query, view, mask, scaling, torch.float32) - want).abs().max().item()
        # The floor is the rounding of values of this size where plain float32 happens to be exact.
        floor = 4 * torch.finfo(torch.float32).eps * want.abs().max().item()
        assert (got - want).abs().max().item() <= 2 * error + floor
        seen.append((view.settled().packed, query.shape[2]))
        return got

    monkeypatch.setattr(tqkv.attention, "packed_attention", compared)
    return seen
