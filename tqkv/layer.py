"""One full-attention layer of the cache: packed tokens between a few first and a few last ones in full precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from tqkv.codec import StateCodec
from tqkv.config import TILE_TOKENS
from tqkv.fused import layouts
from tqkv.plan import KeyPlan
from tqkv.storage import Due, PackedStore
from tqkv.view import ATTENTION, AttentionView, Shared
from tqkv.window import Window

__all__ = ["TurboQuantLayer"]

_BLOCK = 4096  # tokens decoded at a time, so that float32 scratch stays small


class TurboQuantLayer(CacheLayerMixin):
    """Keys and values of one full-attention layer.

    Tokens lie in three places: the first `sink_tokens` and the last `recent_tokens` to ``recent_tokens + 16`` in full
    precision, all between as codes, which are written once and never made again from decoded states.

    Parameters
    ----------
    shared : Shared
        Options, configuration and counters of the cache.
    layer_idx : int
        Index in the model.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = True
    centres_sinks = False  # whether the mean of keys is also that of the first ones

    def __init__(self, shared: Shared, layer_idx: int) -> None:
        super().__init__()
        self.shared, self.layer_idx = shared, layer_idx
        self.packed = 0
        self._handed_out = False
        self._due: Due | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Set up codecs, packed stores and window for states [batch, heads, tokens, d] like these."""
        options = self.shared.options
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads = key_states.shape[:2]
        orders = layouts(options, key_states.shape[-1], value_states.shape[-1])
        stores = []
        for states, bits, scale, order in (
            (key_states, options.key_bits, options.key_scale, orders[0]),
            (value_states, options.value_bits, options.value_scale, orders[1]),
        ):
            codec = StateCodec(
                states.shape[-1], bits, options.code, options.memory, scale, options.seed, self.device
            )
            stores.append(PackedStore(codec, order, batch, heads, self.device))
        self.key_store, self.value_store = stores
        self.window = Window(key_states, value_states, self._slots())
        self.is_initialized = True

    def _slots(self) -> int:
        options = self.shared.options
        return options.sink_tokens + options.recent_tokens + TILE_TOKENS

    @property
    def batch_size(self) -> int:
        """Rows of the batch."""
        return self.key_store.codes.shape[0]

    @property
    def sinks(self) -> int:
        """Tokens held in full precision before the packed ones."""
        return min(self.window.count, self.shared.options.sink_tokens)

    @torch.compiler.disable
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add states and return what attention needs of the layer.

        Parameters
        ----------
        key_states, value_states : torch.Tensor
            [batch, heads, new tokens, d], of one dtype and device.

        Returns
        -------
        tuple of torch.Tensor
            For a first prompt, the states as given. Afterwards all states decoded, [batch, heads, tokens, d]; under
            ``attn_implementation="turboquant"`` the states as given, the keys leading to an `AttentionView`.

        Raises
        ------
        ValueError
            If batch, heads, head_dim, dtype or device differ from those before.
        RuntimeError
            If another attention implementation received packed states in the call before.
        """
        self._check(key_states, value_states)
        self.settle()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        empty = self._is_empty()
        view = self._extend(key_states, value_states)
        if empty:
            self.shared.stats.plain += 1
            if self._due is not None:
                view.prompt = True
                view.attach(key_states)
            return key_states, value_states
        if self.shared.reads_packed:
            self._handed_out = True
            view.attach(key_states)
            return key_states, value_states
        view = view.settled()
        if view.packed:
            self.shared.stats.fallback += 1
        else:
            self.shared.stats.plain += 1
        return self._whole(view, view.keys, self.key_store), self._whole(view, view.values, self.value_store)

    def take(self, queries: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> None:
        """Note that attention has the last view; what waited for its queries is packed.

        Parameters
        ----------
        queries : torch.Tensor, optional
            [batch, query heads, n, d], those of the last tokens.
        mask : torch.Tensor, optional
            That of the attention; only one of padding, bool [batch, keys], is looked at.
        """
        self._handed_out = False
        self.settle(queries, mask if mask is not None and mask.ndim == 2 else None)

    @torch.no_grad()
    def settle(self, queries: torch.Tensor | None = None, seen: torch.Tensor | None = None) -> None:
        """Encode the keys that wait, with a plan for `queries` where one is due; arguments as in `fit_key_plan`."""
        due, self._due = self._due, None
        if due is None:
            return
        if due.fit:
            self._fit(due, queries, seen)
        states = due.keys[:, :, due.first : due.first + due.n]
        self.key_store.write(due.at, *self.key_store.codec.encode(states))

    def _fit(self, due: Due, queries: torch.Tensor | None, seen: torch.Tensor | None) -> None:
        """Fix mean and plan, as far as wanted, to the keys that are due and those after them."""
        options, codec, keys = self.shared.options, self.key_store.codec, due.keys
        start = 0 if self.centres_sinks else due.first
        mask = None if seen is None else seen[:, : keys.shape[2]]
        if options.centre_keys:
            codec.fit_mean(keys[:, :, start:], None if mask is None else mask[:, start:])
        if options.key_plan == "calibrated":
            part = None if mask is None else mask[:, due.first :]
            codec.fit_plan(keys[:, :, due.first :], queries, part)

    def _check(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if self._handed_out:
            raise RuntimeError(
                f"layer {self.layer_idx} returned packed states for attn_implementation={ATTENTION!r}, but another "
                "attention function received them; pass the config of the model that runs to TurboQuantCache"
            )
        if key_states.ndim != 4 or key_states.shape[:3] != value_states.shape[:3]:
            raise ValueError(
                "key_states and value_states must be [batch, heads, tokens, head_dim] with equal batch, heads and "
                f"tokens, got {tuple(key_states.shape)} and {tuple(value_states.shape)}"
            )
        if not self.is_initialized:
            return
        for name, states, held in (
            ("key_states", key_states, self.window.keys),
            ("value_states", value_states, self.window.values),
        ):
            have = (held.shape[0], held.shape[1], held.shape[3])
            got = (states.shape[0], states.shape[1], states.shape[3])
            if have != got:
                raise ValueError(
                    f"{name} must keep batch, heads and head_dim {have} of layer {self.layer_idx}, got {got}; "
                    "use a new cache, or reset() it, for another batch"
                )
            if (states.dtype, states.device) != (self.dtype, self.device):
                raise ValueError(
                    f"{name} must stay {self.dtype} on {self.device} in layer {self.layer_idx}, "
                    f"got {states.dtype} on {states.device}"
                )

    def _is_empty(self) -> bool:
        return self.get_seq_length() == 0

    @torch.no_grad()
    def _extend(self, key_states: torch.Tensor, value_states: torch.Tensor) -> AttentionView:
        """Add new tokens; the view sees those in full precision that were so before, and the new ones."""
        window, tokens = self.window, key_states.shape[2]
        if tokens == 1 and window.count == window.slots:
            n = TILE_TOKENS - self.packed % TILE_TOKENS
            self._pack(window.keys, window.values, self.sinks, n)
            self.settle()
            window.drop(self.sinks, n)
        if window.count + tokens <= window.slots:
            window.append(key_states, value_states)
            return self.view()
        keys, values = key_states, value_states
        if window.count:
            keys = torch.cat([window.keys, key_states], dim=2)
            values = torch.cat([window.values, value_states], dim=2)
        sinks = min(keys.shape[2], self.shared.options.sink_tokens)
        view = AttentionView(self, self.packed, sinks, keys, values)
        spare = keys.shape[2] - sinks - self.shared.options.recent_tokens
        # Packed tokens end at a tile, also after a crop into the middle of one.
        n = (self.packed + spare) // TILE_TOKENS * TILE_TOKENS - self.packed
        self._pack(keys, values, sinks, n)
        window.count = 0
        for part in (slice(0, sinks), slice(sinks + n, None)):
            window.append(keys[:, :, part], values[:, :, part])
        return view

    def _pack(self, keys: torch.Tensor, values: torch.Tensor, first: int, n: int) -> None:
        """Encode `n` tokens of these states, from `first` on, behind the packed ones."""
        options, codec = self.shared.options, self.key_store.codec
        fit = options.centre_keys and codec.mean is None
        fit = fit or (options.key_plan == "calibrated" and codec.plan is None)
        self._encode(values, Due(keys, first, n, self.packed, fit))
        self.packed += n

    def _encode(self, values: torch.Tensor, due: Due) -> None:
        """Encode values and keys, these once attention has the queries where a plan for them is to be made."""
        states = values[:, :, due.first : due.first + due.n]
        self.value_store.write(due.at, *self.value_store.codec.encode(states))
        self._due = due
        if not (due.fit and self.shared.options.key_plan == "calibrated" and self.shared.reads_packed):
            self.settle()

    def _whole(self, view: AttentionView, held: torch.Tensor, store: PackedStore) -> torch.Tensor:
        """All states [batch, heads, tokens, d] of one side, decoded, in order and in the model's dtype."""
        if not view.packed:
            return held
        batch, heads, tokens, d = held.shape
        whole = held.new_empty(batch, heads, tokens + view.packed, d)
        whole[:, :, : view.sinks] = held[:, :, : view.sinks]
        whole[:, :, view.sinks + view.packed :] = held[:, :, view.sinks :]
        for first in range(0, view.packed, _BLOCK):
            last = min(first + _BLOCK, view.packed)
            whole[:, :, view.sinks + first : view.sinks + last] = store.decode(first, last)
        return whole

    def decoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, heads, tokens, d] as the layer holds them, in the model's dtype."""
        view = self.view()
        return self._whole(view, view.keys, self.key_store), self._whole(view, view.values, self.value_store)

    def view(self) -> AttentionView:
        """What attention sees of the layer as it is."""
        self.settle()
        return AttentionView(self, self.packed, self.sinks, self.window.keys, self.window.values)

    def state(self) -> dict[str, torch.Tensor]:
        """All that the layer holds, by name: row-major codes, scalars, mean and window of both sides."""
        parts, view = {}, self.view()
        for side, store, held in (
            ("key", self.key_store, view.keys),
            ("value", self.value_store, view.values),
        ):
            parts[f"{side}_codes"] = store.rows(0, view.packed)
            parts[f"{side}_scalars"] = store.scalars[..., : view.packed]
            parts[f"{side}_window"] = held
            if store.codec.mean is not None:
                parts[f"{side}_mean"] = store.codec.mean
            if store.codec.plan is not None:
                parts |= {
                    f"{side}_weights": store.codec.plan.weights,
                    f"{side}_basis": store.codec.plan.basis,
                }
        return parts

    def restore(self, packed: int, state: Mapping[str, torch.Tensor]) -> None:
        """Take the state of another layer: `packed` tokens and what its `state` returned."""
        keys, values = state["key_window"], state["value_window"]
        self.lazy_initialization(keys, values)
        for side, store in (("key", self.key_store), ("value", self.value_store)):
            store.codec.mean = state.get(f"{side}_mean")
            if f"{side}_weights" in state:
                store.codec.plan = KeyPlan(state[f"{side}_weights"], state[f"{side}_basis"])
            store.write(0, state[f"{side}_codes"], state[f"{side}_scalars"])
        self._hold(keys, values, packed)

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, packed: int) -> None:
        """Take these states as the full-precision ones around `packed` tokens."""
        self.window.append(keys, values)
        self.packed = packed

    @property
    def dims(self) -> int:
        """Dimensions of a token: batch, heads, keys and values together."""
        return sum(
            held.shape[0] * held.shape[1] * held.shape[3] for held in (self.window.keys, self.window.values)
        )

    def memory(self) -> dict[str, int]:
        """Bytes allocated, as in `TurboQuantCache.memory`, without the rotation that layers share."""
        parts = {"codes": 0, "scales": 0, "spare": 0, "window": self.window.nbytes, "tables": 0}
        packed = self.view().packed
        for store in (self.key_store, self.value_store):
            codec, rows = store.codec, self.batch_size * store.codes.shape[1] * packed
            parts["codes"] += rows * codec.code_size
            parts["scales"] += rows * codec.n_scalars * 2
            parts["spare"] += store.nbytes - rows * (codec.code_size + codec.n_scalars * 2)
            parts["tables"] += sum(part.nbytes for part in (codec.mean, codec.plan) if part is not None)
        return parts

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.packed + self.window.count if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask for `query_length` new tokens covers."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: the layer grows."""
        return -1

    def get_max_cache_shape(self) -> int:
        """-1, under the name that transformers had for `get_max_length`."""
        return self.get_max_length()

    def reset(self) -> None:
        """Forget all tokens, and the batch size and dtype with them."""
        self.packed, self._handed_out, self.is_initialized, self._due = 0, False, False, None

    def crop(self, tokens_to_remove: int) -> None:
        """Take off the last tokens; codes are cut, never made again.

        Parameters
        ----------
        tokens_to_remove : int
            Minus the number of tokens; above 0, the tokens to keep, as older releases of transformers call it.
        """
        length = self.get_seq_length()
        target = length + tokens_to_remove if tokens_to_remove <= 0 else min(tokens_to_remove, length)
        if not self.is_initialized or target >= length:
            return
        if target < 0:
            raise ValueError(
                f"tokens_to_remove must be at most the {length} tokens held, got {-tokens_to_remove}"
            )
        sinks = min(self.sinks, target)
        self.packed = min(self.packed, target - sinks)
        self.window.count = target - self.packed

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Put the batch rows in the order of `beam_idx` int64 [batch]."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row `repeats` times."""
        if self.is_initialized:
            rows = torch.arange(self.batch_size, device=self.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the batch rows `indices`, int64 or bool, in this order."""
        if not self.is_initialized:
            return
        self.settle()
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        for part in (self.key_store, self.value_store, self.window):
            part.select(indices)

    def offload(self) -> None:
        """Raise NotImplementedError: packed states stay on the device of their layer."""
        raise NotImplementedError(
            "TurboQuantCache cannot be offloaded: attention reads the codes on the layer's device"
        )

    def prefetch(self) -> None:
        """Raise NotImplementedError, as `offload`."""
        self.offload()
