"""The layer of fixed capacity: a decoding step that allocates nothing, asks the host nothing and can be captured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from tqkv.config import TILE_TOKENS
from tqkv.layer import TurboQuantLayer
from tqkv.masks import Padding
from tqkv.storage import Due, PackedStore
from tqkv.view import AttentionView, CountedView

__all__ = ["FixedLayer", "FixedView"]


@dataclass(frozen=True)
class Step:
    """Counts of a decoding step on the device, the same for all layers that take part.

    Attributes
    ----------
    slot : torch.Tensor
        int64 [1], where in the window the new token goes.
    held : torch.Tensor
        int64 [slots], the token in each slot once the new one is there; below 0 where there is none.
    mask : torch.Tensor
        bool [batch, slots], which slots hold one.
    lengths : torch.Tensor
        int32 [batch], packed tokens.
    """

    slot: torch.Tensor
    held: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Leaving:
    """What leaves the rings of some layers in the next step, encoded beside the present one.

    Attributes
    ----------
    slot, token : torch.Tensor
        int64 [1] on the device: its slot, and the packed token that it becomes.
    layers : list of FixedLayer
        Whose rings they are, in the order in which they take the step.
    """

    slot: torch.Tensor
    token: torch.Tensor
    layers: list[FixedLayer]

    def join(self) -> None:
        """Let what follows wait until all is encoded."""
        device = self.slot.device
        here = torch.cuda.current_stream(device)
        for stream in _beside(device):
            here.wait_stream(stream)


class FixedView(AttentionView):
    """A view whose token counts are on the device.

    Parameters
    ----------
    layer : FixedLayer
        The layer seen, as it is when attention runs.
    step : Step
        The step it is in.
    """

    def __init__(self, layer: FixedLayer, step: Step) -> None:
        self.layer: FixedLayer = layer
        self._step = step

    def settled(self) -> AttentionView:
        """The view in order of tokens; waits for the device."""
        return self.layer.view()

    def counted(self, padding: Padding | None) -> CountedView:
        """The view as the kernel takes it, for the one query of a step: slots of the ring in any order."""
        layer, step, starts = self.layer, self._step, None
        mask = step.mask
        if padding is not None:
            mask = mask & padding.mask[:, step.held.clamp(min=0)]
            starts = (padding.starts - layer.shared.options.sink_tokens).clamp(min=0)
        return CountedView(step.lengths, starts, layer.window.keys, layer.window.values, mask)


class FixedLayer(TurboQuantLayer):
    """Keys and values of one full-attention layer in memory allocated once, at the first prompt.

    The latest tokens lie in a ring. Each decoding step encodes the one token that the next step's will push out, at a
    place computed on the device from `length`, so that a CUDA graph of a step can be replayed. It counts as packed in
    the next step only, so on a CUDA device it is encoded beside the model. Replays past the capacity lose tokens: how
    many to make is the caller's to know.

    Attributes
    ----------
    length : torch.Tensor
        int64 [], tokens held, on the layer's device.
    """

    is_croppable = False
    centres_sinks = True  # a first prompt may be shorter than they are

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate everything for states [batch, heads, tokens, d] like these."""
        super().lazy_initialization(key_states, value_states)
        self.length = torch.zeros((), dtype=torch.int64, device=self.device)
        self._known, self._ahead, self._held_anew = 0, None, False
        self._leaving: Leaving | None = None
        self._spill = -(-(self._limit - self.window.slots) // TILE_TOKENS) * TILE_TOKENS
        for store in (self.key_store, self.value_store):
            # One tile more takes what is encoded before the ring is full, and for the step after the last.
            store.reserve(self._spill + TILE_TOKENS, exact=True)
        self.window.count = self.window.slots

    def _slots(self) -> int:
        return self.shared.options.sink_tokens + self.shared.options.recent_tokens

    @property
    def _limit(self) -> int:
        limit = self.shared.options.max_length
        return 0 if limit is None else limit

    def _is_empty(self) -> bool:
        return self._known == 0

    def _check(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super()._check(key_states, value_states)
        tokens, length = key_states.shape[2], 0
        if self.is_initialized:
            # The host does not see what replays add, so it asks where it may: not in a step.
            length = self._known if tokens == 1 or self._is_empty() else int(self.length)
        length += tokens
        if length > self._limit:
            raise ValueError(
                f"max_length must hold all tokens, got {length} tokens for max_length = {self._limit}"
            )

    @torch.no_grad()
    def _extend(self, key_states: torch.Tensor, value_states: torch.Tensor) -> AttentionView:
        tokens = key_states.shape[2]
        if tokens == 1 and self._known:
            step = self._step(key_states, value_states)
            self._known += 1
            return FixedView(self, step)
        before = self.view()
        keys = torch.cat([before.keys, key_states], dim=2) if self._known else key_states
        values = torch.cat([before.values, value_states], dim=2) if self._known else value_states
        sinks = min(keys.shape[2], self.shared.options.sink_tokens)
        view = AttentionView(self, before.packed, sinks, keys, values)
        n = max(0, keys.shape[2] - self.window.slots)
        self._encode(values, Due(keys, sinks, n, before.packed, fit=not self._known))
        rest = [torch.cat([x[:, :, :sinks], x[:, :, sinks + n :]], dim=2) for x in (keys, values)]
        self._hold(rest[0], rest[1], before.packed + n)
        return view

    def _step(self, key_states: torch.Tensor, value_states: torch.Tensor) -> Step:
        """Put one token in the place of the oldest of the ring, which is encoded; no token count is on the host."""
        step, self._ahead = self._ahead, None
        if step is None:
            step = self._begin()
        if self._leaving is not None and self._leaving.layers[-1] is self:
            self._join()
        if self._on_cuda:
            from tqkv.kernels.append import put_token

            put_token(
                (key_states.detach(), value_states.detach()), self.window.buffers, step.slot, self.length
            )
        else:
            self.window.put(step.slot, key_states, value_states)
            self.length.add_(1)
        return step

    @property
    def _on_cuda(self) -> bool:
        """Whether kernels of our own fill the rings: those that read the layer's codes need the same."""
        return self.device.type == "cuda" and self.key_store.layout is not None

    def _begin(self) -> Step:
        """Counts of the step, and encoding of what leaves the rings in the next one.

        Both are for all layers that are about to take the same step as this one.
        """
        held, batch, slots = self.slot_tokens(self.length), self.batch_size, self.window.slots
        step = Step(
            self._slot(self.length.reshape(1)),
            held,
            (held >= 0).expand(batch, -1).contiguous(),
            (self.length + 1 - slots).clamp(min=0).to(torch.int32).expand(batch).contiguous(),
        )
        if not self._on_cuda:
            self._encode_leaving([self], self.length + 1)
            return step
        fixed = [layer for layer in self.shared.layers if isinstance(layer, FixedLayer)]
        layers: list[FixedLayer] = [layer for layer in fixed if self._goes_with(layer)]
        for layer in layers:
            layer.settle()
            layer._join()
            layer._ahead = None if layer is self else step
        # Held until joined: memory that the streams beside read must not be given to others.
        leaving = self._encode_leaving(layers, self.length + 1)
        for layer in layers:
            layer._leaving = leaving
        return step

    def _encode_leaving(self, layers: list[FixedLayer], length: torch.Tensor) -> Leaving | None:
        """Encode what leaves the rings after `length` tokens, int64 []; on CUDA beside the current stream."""
        slots, at = self.window.slots, length.reshape(1)
        token = torch.where(at >= slots, at - slots, self._spill).clamp(max=self._spill)
        leaving = Leaving(self._slot(at), token, layers)
        if not self._on_cuda:
            for store, states in zip(
                (self.key_store, self.value_store), self.window.select_slots(leaving.slot), strict=True
            ):
                store.write_one(token, *store.codec.encode(states))
            return None
        # Encoding a few rows takes long and little of the device, so keys and values go side by side.
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            for side, stream in zip(("key", "value"), _beside(self.device), strict=True):
                stream.wait_stream(here)
                with torch.cuda.stream(stream):
                    self._append(side, leaving)
        return leaving

    def _join(self) -> None:
        """Let what follows on the current stream wait for codes that are made beside it."""
        leaving = self._leaving
        if leaving is not None:
            leaving.join()
            for layer in leaving.layers:
                layer._leaving = None

    def _append(self, side: str, leaving: Leaving) -> None:
        """Encode what leaves the rings of keys or of values."""
        from tqkv.kernels.append import RingSide, append_leaving

        rings = []
        for layer in leaving.layers:
            store: PackedStore = getattr(layer, f"{side}_store")
            window = getattr(layer.window, f"{side}s")
            plan = store.codec.plan
            weights = None if plan is None else plan.weights
            rings.append(RingSide(window, store.codes, store.scalars[0], store.codec.mean, weights))
        own: PackedStore = getattr(self, f"{side}_store")
        if own.layout is not None:
            append_leaving(rings, own.codec, own.layout, leaving.slot, leaving.token)

    def _goes_with(self, other: FixedLayer) -> bool:
        """Whether a layer is this one, or about to take the same step with states of the same shape."""
        if other is self:
            return True
        return (
            other.is_initialized
            and other._ahead is None
            and other._known == self._known
            and (other.device, other.dtype) == (self.device, self.dtype)
            and other.key_store.codes.shape == self.key_store.codes.shape
            and other.value_store.codes.shape == self.value_store.codes.shape
        )

    def _slot(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where in the window tokens lie: the first in order, the others round the ring."""
        sinks, recent = self.shared.options.sink_tokens, self.shared.options.recent_tokens
        return torch.where(tokens < sinks, tokens, sinks + (tokens - sinks) % recent)

    def slot_tokens(self, last: torch.Tensor) -> torch.Tensor:
        """The token in each slot once `last`, int64 [], is there: int64 [slots]; below 0 where there is none."""
        sinks, recent = self.shared.options.sink_tokens, self.shared.options.recent_tokens
        slots = torch.arange(self.window.slots, device=self.device)
        ring = last - (last - slots) % recent
        first = torch.where(slots <= last, slots, -1)
        return torch.where(slots < sinks, first, torch.where(ring >= sinks, ring, -1))

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, packed: int) -> None:
        length = packed + keys.shape[2]
        sinks = min(keys.shape[2], self.shared.options.sink_tokens)
        tokens = torch.arange(keys.shape[2], device=self.device)
        tokens = torch.where(tokens < sinks, tokens, tokens + packed)
        self.window.put(self._slot(tokens), keys, values)
        self.length.fill_(length)
        self._known, self._ahead, self._held_anew = length, None, True
        if self._due is None:
            self.settle()

    def settle(self, queries: torch.Tensor | None = None, seen: torch.Tensor | None = None) -> None:
        """Encode what waits, and after a prompt what the first step pushes out; arguments as in `fit_key_plan`."""
        super().settle(queries, seen)
        if self.is_initialized and self._held_anew:
            self._held_anew = False
            if self._known >= self.window.slots:
                self._leaving = self._encode_leaving([self], self.length)
                self._join()

    def view(self) -> AttentionView:
        """What attention sees of the layer as it is, in order of tokens; waits for the device."""
        self.settle()
        self._join()
        length = int(self.length)
        packed = max(0, length - self.window.slots)
        sinks = min(length, self.shared.options.sink_tokens)
        tokens = torch.arange(length - packed, device=self.device)
        tokens = torch.where(tokens < sinks, tokens, tokens + packed)
        return AttentionView(self, packed, sinks, *self.window.select_slots(self._slot(tokens)))

    def get_seq_length(self) -> int | torch.Tensor:
        """Tokens held, int64 [] on the device; 0 before the first."""
        return self.length.clone() if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The capacity for packed attention, which knows the tokens itself; else length and offset of the keys."""
        if self.shared.reads_packed:
            return self._limit, 0
        return int(self.get_seq_length()) + query_length, 0

    def get_max_length(self) -> int:
        """Tokens there is room for."""
        return self._limit

    def reset(self) -> None:
        """Forget all tokens; memory, and graphs that were captured, stay."""
        self._handed_out, self._due = False, None
        if self.is_initialized:
            self._join()
            self._known, self._ahead, self._held_anew = 0, None, False
            self.length.zero_()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the batch rows `indices`, int64 or bool, in this order."""
        if self.is_initialized:
            self._join()
        super().batch_select_indices(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Raise ValueError unless nothing is to go: tokens that left the ring are only codes."""
        if tokens_to_remove != 0:
            raise ValueError(f"tokens_to_remove must be 0 where max_length is given, got {tokens_to_remove}")


@lru_cache(maxsize=16)
def _beside(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Streams of a device for what may run beside the current one."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)
