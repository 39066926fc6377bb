"""`TurboQuantCache`: a transformers cache whose full-attention layers hold codes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.configuration_utils import PreTrainedConfig

from tqkv.attention import register
from tqkv.config import CacheOptions
from tqkv.fixed import FixedLayer
from tqkv.layer import TurboQuantLayer
from tqkv.serialization import read_options, restore_layers, save_layers
from tqkv.view import CacheStats, Shared

__all__ = ["TurboQuantCache"]

register()


class TurboQuantCache(Cache):
    """A key-value cache of 2 to 4 bits for any transformers model that uses the standard cache.

    Pass it as `past_key_values` to `generate` or to the model. Full-attention layers hold codes; sliding-window and
    linear-attention layers are transformers' own. With ``attn_implementation="turboquant"`` attention reads the codes;
    with any other the cache decodes its states for every call, which is correct and slow (see `stats`).

    Parameters
    ----------
    config : PreTrainedConfig
        That of the model, ``model.config``.
    bits : float
        Bits per dimension of keys and values: 2, 2.5, 3, 3.5 or 4.
    key_bits, value_bits : float, optional
        The same for one side.
    code : str
        "chain"; or, to compare with, the codes of TurboQuant (arXiv 2504.19874): "mse" (Algorithm 1) and "prod"
        (Algorithm 2, whole bits).
    memory : int
        Nibbles a coordinate of a chain depends on: 2, or 3 for less error, slower encoding and no fused kernel.
    key_scale, value_scale : str, optional
        The 16-bit scale of every state: "unbiased" makes inner products right on average (by default),
        "least_squares" makes the squared error least, "norm" is the paper's (its codes' default).
    centre_keys : bool
        Take the mean off the keys of every head before coding. It is that of the tokens at hand when the first are
        packed, and fixed from then on; attention accounts for it exactly.
    key_plan : str
        "oblivious"; or "calibrated": keys of every head go through a linear map that puts the code's error where
        queries do not look. It is made when the first tokens are packed, of the keys and, under
        ``attn_implementation="turboquant"``, the queries at hand, and is fixed from then on. Heads that gain nothing
        do without. It takes 8 d^2 bytes a head; `tqkv.plan` says how it is made.
    sink_tokens : int
        First tokens of the sequence kept in full precision, padding included.
    recent_tokens : int
        Latest tokens kept in full precision, a multiple of 16; up to 16 more wait to be packed together. Much of
        attention goes to them: at 2 bits the divergence of a small model fell from 0.027 with none and no sinks to
        0.008 with 128 and 4. They take the memory of some 600 tokens packed at 3.5 bits.
    skip_layers : iterable of int
        Full-attention layers left in full precision.
    max_length : int, optional
        Allocate for that many tokens once, at the first prompt; later calls allocate nothing and can be captured in a
        CUDA graph. Without it the cache grows.
    seed : int
        Seed of the rotation.
    offloading : bool
        Must be False: attention reads the codes on the device of their layer.

    Attributes
    ----------
    stats : CacheStats
        Attention calls: on full-precision states alone, fused, and by decoding.

    Raises
    ------
    ValueError
        For arguments out of range, and for layer types that no cache layer is known for.

    Examples
    --------
    >>> cache = TurboQuantCache(config=model.config, bits=3.5)  # doctest: +SKIP
    >>> model.generate(**inputs, past_key_values=cache)  # doctest: +SKIP
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        bits: float = 3.5,
        *,
        key_bits: float | None = None,
        value_bits: float | None = None,
        code: str = "chain",
        memory: int = 2,
        key_scale: str | None = None,
        value_scale: str | None = None,
        centre_keys: bool = True,
        key_plan: str = "oblivious",
        sink_tokens: int = 4,
        recent_tokens: int = 128,
        skip_layers: Iterable[int] = (),
        max_length: int | None = None,
        seed: int = 0,
        offloading: bool = False,
    ) -> None:
        if not isinstance(config, PreTrainedConfig):
            raise ValueError(f"config must be a transformers configuration, got {type(config).__name__}")
        if offloading is not False:
            raise ValueError(
                f"offloading must be False: codes stay on the device of their layer, got {offloading!r}"
            )
        config = config.get_text_config(decoder=True)
        layers, full = _plain_layers(config)
        self.options = CacheOptions.checked(
            num_layers=len(layers),
            bits=bits,
            key_bits=key_bits,
            value_bits=value_bits,
            code=code,
            memory=memory,
            key_scale=key_scale,
            value_scale=value_scale,
            centre_keys=centre_keys,
            key_plan=key_plan,
            sink_tokens=sink_tokens,
            recent_tokens=recent_tokens,
            skip_layers=skip_layers,
            max_length=max_length,
            seed=seed,
        )
        packed = [index for index in full if index not in self.options.skip_layers]
        if not packed:
            raise ValueError(
                f"config must have a full-attention layer outside skip_layers = {sorted(self.options.skip_layers)}, "
                f"got full-attention layers {full}"
            )
        shared = Shared(self.options, config)
        kind = TurboQuantLayer if self.options.max_length is None else FixedLayer
        for index in packed:
            layers[index] = kind(shared, index)
            shared.layers.append(layers[index])
        self._shared = shared
        super().__init__(layers=layers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all layers to a safetensors file, to be continued after `load`."""
        save_layers(self.layers, self.options, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        config: PreTrainedConfig,
        device: str | torch.device | Mapping[int, str | torch.device] = "cpu",
    ) -> TurboQuantCache:
        """A saved cache.

        Parameters
        ----------
        path : path
            What `save` wrote.
        config : PreTrainedConfig
            That of the model which goes on.
        device : str, torch.device or mapping
            Where the layers' states go: one device, or one for every layer index.

        Raises
        ------
        CacheFileError
            A ValueError: the file is no cache, damaged, or of a model with other layers.
        """
        cache = cls(config, **read_options(path))
        restore_layers(cache.layers, path, device)
        return cache

    @property
    def stats(self) -> CacheStats:
        """Attention calls so far, by kind."""
        return self._shared.stats

    @property
    def packed_layers(self) -> list[TurboQuantLayer]:
        """The layers that hold codes, in order."""
        return [layer for layer in self.layers if isinstance(layer, TurboQuantLayer)]

    def memory(self) -> dict[str, int]:
        """Bytes allocated by the packed layers.

        Returns
        -------
        dict
            "codes" and "scales" of the packed tokens, "spare" for those to come, "window" of tokens in full
            precision, "tables" (rotation, means and plans), and their "total".
        """
        parts: dict[str, int] = dict.fromkeys(("codes", "scales", "spare", "window", "tables"), 0)
        rotations = {}
        for layer in self.packed_layers:
            if not layer.is_initialized:
                continue
            for name, size in layer.memory().items():
                parts[name] += size
            for store in (layer.key_store, layer.value_store):
                rotations[store.codec.rotation.data_ptr()] = store.codec.rotation.nbytes
        parts["tables"] += sum(rotations.values())
        return parts | {"total": sum(parts.values())}

    @property
    def effective_bits(self) -> float:
        """Bits per dimension of the packed tokens, scales included; 0 before the first."""
        bits = dims = 0
        for layer in self.packed_layers:
            if layer.is_initialized:
                parts = layer.memory()
                bits += 8 * (parts["codes"] + parts["scales"])
                dims += layer.view().packed * layer.dims
        return bits / dims if dims else 0.0


def _plain_layers(config: PreTrainedConfig) -> tuple[list, list[int]]:
    """Layers as `DynamicCache` makes them, and the indices of those with full attention."""
    try:
        layers = DynamicCache(config=config).layers
    except KeyError as error:
        raise ValueError(f"config.layer_types must be known to transformers, got {error}") from error
    types = getattr(config, "layer_types", None) or []
    known = {"full_attention", "dummy", "moe", "mlp"}
    full = [index for index, layer in enumerate(layers) if type(layer) is DynamicLayer]
    for index in full:
        if index < len(types) and types[index] not in known:
            raise ValueError(
                f"config.layer_types must be types that the cache knows, got {types[index]!r} in layer {index}"
            )
    return layers, full
