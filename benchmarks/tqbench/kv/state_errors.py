"""Errors of a model's own keys, values and attention when they are stored in codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.modeling_utils import AttentionInterface

from tqkv.cache import TurboQuantCache

__all__ = ["States", "capture", "layer_errors"]

_NAME = "tqbench_captured"
_QUERIES = 64  # queries a window whose inner products are compared, evenly spaced


@dataclass
class States:
    """What a layer's attention was given: queries [batch, heads, n, d]; keys, values [batch, kv heads, n, d]."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scaling: float


@torch.no_grad()
def capture(model: Any, windows: torch.Tensor) -> dict[int, States]:
    """States by full-attention layer of a model that reads windows of tokens int64 [batch, n]."""
    seen: dict[int, States] = {}
    with _recording(model, seen):
        model(windows.to(model.device), past_key_values=DynamicCache(config=model.config), use_cache=True)
    return seen


@contextmanager
def _recording(model: Any, seen: dict[int, States]) -> Iterator[None]:
    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        scaling: float | None = None,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        seen[module.layer_idx] = States(query, key, value, factor)
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=factor, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(_NAME, attention)
    usual = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@torch.no_grad()
def layer_errors(
    config: Any, states: Mapping[int, States], settings: Mapping[str, Any]
) -> list[dict[str, float]]:
    """Errors of every layer that a packed cache of these settings stores.

    Returns
    -------
    list of dict
        `layer`; `keys`, `values`: squared error over squared norm; `inner`: squared error of query-key products over
        their squares; `slope`: the product's slope on the true one, 1 where it is unbiased; `logits`: root mean
        square error of the scaled products that a softmax sees, which a constant of a query does not change; `output`:
        squared error of attention's output over its squared norm.
    """
    options: dict[str, Any] = {**settings, "sink_tokens": 0, "recent_tokens": 0}
    cache = TurboQuantCache(config, **options)
    rows = []
    for layer in cache.packed_layers:
        held = states[layer.layer_idx]
        cache.update(held.keys, held.values, layer.layer_idx)
        keys, values = (x.float() for x in layer.decoded())
        layer.reset()
        rows.append({"layer": layer.layer_idx} | _errors(held, keys, values))
    return rows


def _errors(held: States, keys: torch.Tensor, values: torch.Tensor) -> dict[str, float]:
    true_keys, true_values = held.keys.float(), held.values.float()
    n = true_keys.shape[2]
    places = torch.linspace(n // 8, n - 1, min(_QUERIES, n), device=keys.device).long().unique()
    group = held.query.shape[1] // keys.shape[1]
    query = held.query.float()[:, :, places].unflatten(1, (-1, group))
    seen = torch.arange(n, device=keys.device) <= places[:, None]
    true = query @ true_keys.unsqueeze(2).transpose(-1, -2) * seen
    got = query @ keys.unsqueeze(2).transpose(-1, -2) * seen
    apart = (got - true) * held.scaling
    counts = seen.sum(-1, keepdim=True)
    apart = (apart - apart.sum(-1, keepdim=True) / counts) * seen
    weights = [(x * held.scaling).masked_fill(~seen, -torch.inf).softmax(-1) for x in (true, got)]
    out, packed = weights[0] @ true_values.unsqueeze(2), weights[1] @ values.unsqueeze(2)
    found = {
        "keys": _relative(keys, true_keys),
        "values": _relative(values, true_values),
        "inner": _relative(got, true),
        "slope": (got * true).sum() / true.square().sum(),
        "logits": (apart.square().sum() / (counts.sum() * apart[..., 0, 0].numel())).sqrt(),
        "output": _relative(packed, out),
    }
    return {name: float(value) for name, value in found.items()}


def _relative(got: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return (got - true).square().sum() / true.square().sum()
