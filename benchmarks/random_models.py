"""Whole models of random weights, and caches for them that are filled at once instead of by a long prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
)
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from tqbench.kv.decode_timing import split_attention
from tqbench.kv.random_weights import MODELS, random_model
from tqkv import TurboQuantCache

__all__ = ["MODELS", "PLAIN", "Bench", "PlainLayer", "random_model"]

_PROMPT = 256  # tokens that set a cache up
PLAIN = ("flash", "cudnn", "split")  # attention over the states of a `PlainLayer`
_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


class PlainLayer(DynamicLayer):
    """Full-precision states [batch, heads, tokens, d] allocated once; a step puts its token in the last place."""

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take these states, the last of which every step replaces."""
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All states, the last of them new."""
        keys, values = _states(self)
        keys[:, :, -1:], values[:, :, -1:] = key_states, value_states
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens before the new one."""
        return _states(self)[0].shape[2] - 1


def _plain_attention(kind: str) -> Callable[..., tuple[torch.Tensor, None]]:
    """Attention of transformers' interface over all states there are, without a mask."""

    def forward(
        _module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _mask: torch.Tensor | None,
        scaling: float | None = None,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        attend = torch.nn.functional.scaled_dot_product_attention
        if query.shape[2] > 1 or not query.is_cuda:
            out = attend(query, key, value, scale=scaling, is_causal=query.shape[2] > 1, enable_gqa=True)
        elif kind == "split":
            out = split_attention(query, key, value)
        else:
            with sdpa_kernel(_BACKENDS[kind]):
                out = attend(query, key, value, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    return forward


# transformers takes a name with "flash" in it for one of its own.
_IMPLEMENTATIONS = {kind: f"plain_{kind[1:]}" for kind in PLAIN}
for _kind, _name in _IMPLEMENTATIONS.items():
    AttentionInterface.register(_name, _plain_attention(_kind))
    # transformers makes a mask of its own while a graph is captured, and no fast backend takes one.
    AttentionMaskInterface.register(_name, lambda *_args, **_kwargs: None)


@dataclass
class Bench:
    """A model, and what all measurements of it share.

    Attributes
    ----------
    model : PreTrainedModel
        In evaluation mode, on `device`.
    bits : float
        Rate of the packed caches.
    steps : int
        Steps whose median is a measurement.
    compile_mode : str or None
        Mode of `torch.compile` for steps; None leaves them as they are.
    """

    model: PreTrainedModel
    bits: float
    steps: int
    compile_mode: str | None = None

    def compiled(self) -> Callable[..., Any]:
        """The model to take steps with: compiled anew, for one shape, if steps are to be."""
        if self.compile_mode is None:
            return self.model
        torch._dynamo.reset()
        # Where a layer's cache or kernel is left out of the graph, the code around it is compiled for every layer.
        torch._dynamo.config.recompile_limit = 1024
        torch._dynamo.config.accumulated_recompile_limit = 1 << 14
        return torch.compile(self.model, dynamic=False, mode=self.compile_mode)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def forward(
        self,
        cache: Cache,
        token: torch.Tensor,
        position: torch.Tensor,
        model: Callable[..., Any] | None = None,
    ) -> torch.Tensor:
        """Logits [batch, 1, vocabulary] after tokens int64 [batch, n] at positions int64 [batch, n]."""
        model = self.model if model is None else model
        return model(token, position_ids=position, past_key_values=cache, logits_to_keep=1).logits

    def prompt(self, cache: Cache, batch: int, tokens: int) -> None:
        """Run a random prompt, so that every layer of the cache has its shapes and states."""
        ids = torch.randint(2, self.model.config.vocab_size, (batch, tokens), device=self.device)
        positions = torch.arange(tokens, device=self.device).expand(batch, -1)
        self.forward(cache, ids, positions)

    def attend_with(self, name: str) -> None:
        """Choose the attention implementation, one of transformers' or of `PLAIN`."""
        self.model.set_attn_implementation(_IMPLEMENTATIONS.get(name, name))

    def bytes_of_step(self, batch: int, tokens: int, share: float = 1.0) -> float:
        """Bytes a step reads at least: all weights but the table of embeddings, and the states of full attention.

        `share` is what packed states take of bfloat16 ones.
        """
        config = self.model.config.get_text_config(decoder=True)
        weights = sum(x.numel() * x.element_size() for x in self.model.parameters())
        if not config.tie_word_embeddings:
            weights -= config.vocab_size * config.hidden_size * self.model.dtype.itemsize
        return weights + batch * tokens * share * self.bytes_of_token

    @property
    def bytes_of_token(self) -> int:
        """Bytes of a token's keys and values in bfloat16, all layers of full attention together."""
        config = self.model.config.get_text_config(decoder=True)
        layers = sum(kind == "full_attention" for kind in config.layer_types)
        return layers * 4 * config.num_key_value_heads * config.head_dim

    @property
    def packed_share(self) -> float:
        """What packed states, scales included, take of bfloat16 ones."""
        return self.bits / 16 + 1 / self.model.config.get_text_config(decoder=True).head_dim

    def packed_cache(self, batch: int, tokens: int, room: int | None) -> TurboQuantCache:
        """A packed cache of random codes for `tokens`, of fixed capacity if there is `room` for further ones."""
        self.attend_with("turboquant")
        capacity = None if room is None else tokens + room
        cache = TurboQuantCache(self.model.config, bits=self.bits, max_length=capacity)
        self.prompt(cache, batch, _PROMPT)
        for layer in cache.packed_layers:
            view = layer.view()
            packed = tokens - view.keys.shape[2]
            for store in (layer.key_store, layer.value_store):
                store.reserve(packed)
                store.codes.random_(0, 256)
                # Scales that leave the logits of random codes near the size of those of random states.
                store.scalars.uniform_(0.5, 1.0)
            keys, values = view.keys.clone(), view.values.clone()
            if room is None:
                layer.window.count = 0
            layer._hold(keys, values, packed)
        return cache

    def plain_cache(self, kind: str, batch: int, tokens: int) -> Cache:
        """A cache of random bfloat16 states: "dynamic", "static", or a name of `PLAIN` for `PlainLayer`."""
        self.attend_with(kind if kind in PLAIN else "sdpa")
        config = self.model.config
        if kind == "static":
            cache: Cache = StaticCache(config=config, max_cache_len=tokens + 4 * self.steps)
        else:
            cache = DynamicCache(config=config)
        self.prompt(cache, batch, _PROMPT)
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, StaticLayer):
                layer.keys.normal_()
                layer.values.normal_()
                layer.cumulative_length.fill_(tokens)
            elif type(layer) is DynamicLayer:
                states = [x.new_empty(batch, x.shape[1], tokens, x.shape[3]) for x in _states(layer)]
                keys, values = (x.normal_() for x in states)
                if kind == "dynamic":
                    layer.keys, layer.values = keys, values
                else:
                    cache.layers[index] = held = PlainLayer()
                    held.hold(keys, values)
        return cache


def _states(layer: DynamicLayer) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = layer.keys, layer.values
    if keys is None or values is None:
        raise RuntimeError("a layer holds no states yet")
    return keys, values
