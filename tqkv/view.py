"""What one call of attention is told of a layer, and what the layers of a cache share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers.configuration_utils import PreTrainedConfig

from tqkv.config import CacheOptions
from tqkv.masks import Padding

if TYPE_CHECKING:
    from tqkv.layer import TurboQuantLayer

__all__ = ["ATTENTION", "AttentionView", "CacheStats", "CountedView", "Shared"]

ATTENTION = "turboquant"  # the name of the attention function that reads packed states
_HELD = "_tqkv_view"  # attribute of the returned keys that leads the attention function to the packed states


@dataclass
class CacheStats:
    """How attention was computed, in calls of one layer each.

    Attributes
    ----------
    plain : int
        On full-precision states alone: first prompts, and while nothing is packed.
    fused : int
        By the kernel that reads packed states.
    fallback : int
        On states decoded block by block, or decoded whole for another attention implementation.
    """

    plain: int = 0
    fused: int = 0
    fallback: int = 0


@dataclass
class Shared:
    """What the layers of one cache have in common.

    Attributes
    ----------
    options : CacheOptions
        Rates, codes and window.
    config : PreTrainedConfig
        The decoder's configuration, which names the attention implementation in use.
    stats : CacheStats
        Counters.
    layers : list of TurboQuantLayer
        The layers that hold codes, in order.
    """

    options: CacheOptions
    config: PreTrainedConfig
    stats: CacheStats = field(default_factory=CacheStats)
    layers: list[TurboQuantLayer] = field(default_factory=list)

    @property
    def reads_packed(self) -> bool:
        """Whether the model's attention takes packed states."""
        return getattr(self.config, "_attn_implementation", None) == ATTENTION


@dataclass
class AttentionView:
    """What a layer's attention sees in one call, the new tokens included.

    Attributes
    ----------
    layer : TurboQuantLayer
        The layer whose packed tokens are seen.
    packed : int
        Packed tokens seen; they follow the first `sinks` tokens.
    sinks : int
        Leading tokens of `keys` and `values` that come before the packed ones.
    keys, values : torch.Tensor
        Full-precision states [batch, heads, tokens, d]: sinks, then the tokens after the packed ones.
    prompt : bool
        Whether these are all there is, as they were given.
    """

    layer: TurboQuantLayer
    packed: int
    sinks: int
    keys: torch.Tensor
    values: torch.Tensor
    prompt: bool = False

    @classmethod
    def of(cls, key_states: torch.Tensor) -> AttentionView | None:
        """The view that `TurboQuantLayer.update` attached to the keys it returned, or None."""
        return getattr(key_states, _HELD, None)

    def attach(self, key_states: torch.Tensor) -> None:
        """Let `key_states` lead to this view."""
        setattr(key_states, _HELD, self)

    def settled(self) -> AttentionView:
        """The view with its token counts known to the host."""
        return self

    def counted(self, padding: Padding | None) -> CountedView:
        """The view as the kernel takes it."""
        device = self.keys.device
        lengths = torch.full((self.keys.shape[0],), self.packed, dtype=torch.int32, device=device)
        if padding is None:
            return CountedView(lengths, None, self.keys, self.values, None)
        tokens = torch.arange(self.keys.shape[2], device=device)
        tokens = torch.where(tokens < self.sinks, tokens, tokens + self.packed)
        starts = (padding.starts - self.sinks).clamp(min=0)
        return CountedView(lengths, starts, self.keys, self.values, padding.mask[:, tokens])


@dataclass
class CountedView:
    """A view with its counts on the device.

    Attributes
    ----------
    lengths : torch.Tensor
        int32 [batch], packed tokens.
    starts : torch.Tensor or None
        int32 [batch], packed tokens masked at the start.
    keys, values : torch.Tensor
        Full-precision states [batch, heads, tokens, d].
    mask : torch.Tensor or None
        bool [batch, tokens], which of them are seen, causal order apart.
    """

    lengths: torch.Tensor
    starts: torch.Tensor | None
    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None
