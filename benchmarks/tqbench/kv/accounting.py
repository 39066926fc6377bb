"""Bytes of a model and its cache from a configuration alone: the model runs on shapes, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from tqkv.cache import TurboQuantCache
from tqkv.codec import StateCodec
from tqkv.config import TILE_TOKENS
from tqkv.layer import TurboQuantLayer

from ..errors import BenchError

__all__ = ["Geometry", "geometry", "measured_layer", "packed_layer"]

_TOKENS = 8


@dataclass(frozen=True)
class Geometry:
    """What a model holds for one sequence.

    Attributes
    ----------
    weights : int
        Bytes of all parameters, tied ones once.
    packable : tuple of (int, int, int)
        Key-value heads, key and value dimensions of every full-attention layer.
    sliding : tuple of (int, int)
        Bytes of a token, and tokens held at most, of every layer with a sliding window.
    recurrent : int
        Bytes of convolution and recurrent states, which do not grow.
    itemsize : int
        Bytes of a number of weights and states.
    """

    weights: int
    packable: tuple[tuple[int, int, int], ...]
    sliding: tuple[tuple[int, int], ...]
    recurrent: int
    itemsize: int

    def full(self, tokens: int) -> int:
        """Bytes of keys and values of the full-attention layers in full precision."""
        return tokens * self.itemsize * sum(heads * (dk + dv) for heads, dk, dv in self.packable)

    def windows(self, tokens: int) -> int:
        """Bytes of the layers with a sliding window."""
        return sum(size * min(tokens, most) for size, most in self.sliding)


def geometry(config: Any, dtype: torch.dtype = torch.bfloat16) -> Geometry:
    """The geometry of the text decoder of a configuration.

    Raises
    ------
    BenchError
        If transformers has no causal language model for it, or a layer holds something unknown.
    """
    config = config.get_text_config(decoder=True)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    except ValueError as error:
        raise BenchError(f"no causal language model for {type(config).__name__}: {error}") from error
    cache = DynamicCache(config=config)
    with torch.inference_mode():
        ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
        model.eval()(ids, past_key_values=cache, use_cache=True)
    packs = [isinstance(layer, TurboQuantLayer) for layer in TurboQuantCache(config).layers]
    packable, sliding, recurrent = [], [], 0
    held: list[Any] = cache.layers
    for index, (layer, packed) in enumerate(zip(held, packs, strict=True)):
        if packed:
            packable.append((layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
            continue
        for states in ("conv_states", "recurrent_states"):
            parts = getattr(layer, states, {}).values()
            recurrent += sum(part.nbytes for part in parts if part is not None)
        if isinstance(layer, DynamicSlidingWindowLayer):
            size = (layer.keys.nbytes + layer.values.nbytes) // layer.keys.shape[2]
            sliding.append((size, layer.sliding_window - 1))  # the next token is the last one of the window
        elif getattr(layer, "keys", None) is not None:
            raise BenchError(f"layer {index} holds a {type(layer).__name__}, which is not accounted for")
    return Geometry(
        sum(p.nbytes for p in model.parameters()), tuple(packable), tuple(sliding), recurrent, dtype.itemsize
    )


def packed_layer(
    shape: tuple[int, int, int], tokens: int, bits: float, code: str, sinks: int, recent: int, itemsize: int
) -> dict[str, int]:
    """Bytes of one packed layer right after a prompt, by part as in `TurboQuantCache.memory`, the rotation apart."""
    heads, *dims = shape
    slots = sinks + recent + TILE_TOKENS
    packed = (tokens - sinks - recent) // TILE_TOKENS * TILE_TOKENS if tokens > slots else 0
    codecs = [StateCodec(d, bits, code, 2, "norm", 0, torch.device("cpu")) for d in dims]
    return {
        "codes": packed * heads * sum(codec.code_size for codec in codecs),
        "scales": packed * heads * sum(codec.n_scalars * 2 for codec in codecs),
        "window": slots * heads * sum(dims) * itemsize,
        "tables": 4 * heads * dims[0] if packed else 0,
    }


def measured_layer(
    config: Any, shape: tuple[int, int, int], dtype: torch.dtype, **options: Any
) -> dict[str, int]:
    """Bytes that a real cache allocates for its first packed layer, given random states.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's.
    shape : tuple
        Heads, key and value dimensions of that layer.
    dtype : torch.dtype
        Of the states.
    **options
        `tokens`, and arguments of `TurboQuantCache`.
    """
    tokens = options.pop("tokens")
    cache = TurboQuantCache(config.get_text_config(decoder=True), **options)
    layer = cache.packed_layers[0]
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, shape[0], tokens, d, generator=generator).to(dtype) for d in shape[1:]]
    cache.update(states[0], states[1], layer.layer_idx)
    return layer.memory()
