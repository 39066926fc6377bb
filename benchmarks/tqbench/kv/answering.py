"""Answers from a cache that was filled before the question came, packed or in full precision."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tqkv.cache import TurboQuantCache
from tqkv.config import TILE_TOKENS

from ..errors import BenchError

__all__ = ["answer", "prefill", "repacked"]


@torch.inference_mode()
def prefill(model: Any, context: Sequence[int], cache: Any) -> Any:
    """`cache` after the context went through the model."""
    ids = torch.tensor([context], device=model.device)
    # Logits of a whole context would take more memory than the cache.
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    model(ids, past_key_values=cache, use_cache=True, **few)
    return cache


@torch.inference_mode()
def repacked(
    model: Any, context: Sequence[int], full: DynamicCache, options: Mapping[str, Any]
) -> TurboQuantCache:
    """A packed cache of the context.

    Packed layers take their states from `full`, which are those that the model would give them. Where a layer is not
    of full attention the context goes through the model again.
    """
    cache = TurboQuantCache(model.config, **options)
    if any(type(layer) is not DynamicLayer for layer in full.layers):
        return prefill(model, context, cache)
    held: list[Any] = full.layers
    for index, layer in enumerate(held):
        cache.update(layer.keys, layer.values, index)
    return cache


@torch.inference_mode()
def answer(
    model: Any, question: Sequence[int], cache: Any, tokens: int, ends: frozenset[int], least: int = 0
) -> list[int]:
    """Up to `tokens` tokens after the question, greedily; the question is a forward pass of its own.

    The answer stops before a token of `ends`, none of which can be among its first `least` tokens.

    Raises
    ------
    BenchError
        If a packed cache held more in full precision than its window, or attention did not read its codes.
    """
    held = cache.get_seq_length()
    ids = torch.tensor([question], device=model.device)
    said: list[int] = []
    for _ in range(tokens):
        logits = model(ids, past_key_values=cache, use_cache=True).logits[0, -1]
        if ends and len(said) < least:
            logits[list(ends)] = -torch.inf
        token = int(logits.argmax())
        if token in ends:
            break
        said.append(token)
        ids = torch.tensor([[token]], device=model.device)
    if isinstance(cache, TurboQuantCache):
        _check_packed(cache, held)
    return said


def _check_packed(cache: TurboQuantCache, held: int) -> None:
    options, layers = cache.options, cache.packed_layers
    most = options.sink_tokens + options.recent_tokens + TILE_TOKENS
    for layer in layers:
        if layer.window.slots > most:
            raise BenchError(f"layer {layer.layer_idx} keeps {layer.window.slots} tokens in full precision")
    if held <= most:
        raise BenchError(
            f"a context of {held} tokens is not packed: the window holds {most}; ask for greater lengths"
        )
    stats = cache.stats
    if stats.plain != len(layers) or stats.fused + stats.fallback < len(layers):
        raise BenchError(f"the answer must come from the codes, but attention was {stats}")
