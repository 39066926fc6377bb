"""Attention over packed states, registered with transformers as "turboquant"."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from tqkv.fused import fused_attention
from tqkv.masks import Padding, causal_columns, turboquant_mask
from tqkv.softmax import SoftmaxSum
from tqkv.view import ATTENTION, AttentionView

__all__ = ["packed_attention", "register", "turboquant_attention_forward"]

_SCORES = 1 << 26  # float32 scores of one step over decoded history, which bounds its memory to some 256 MiB
_BLOCK = 4096  # tokens decoded at a time
_PADDED_QUERIES = 1024  # rows of a padding mask made explicit at a time


def register() -> None:
    """Make ``attn_implementation="turboquant"`` known to transformers; importing tqkv's cache does it."""
    AttentionInterface.register(ATTENTION, turboquant_attention_forward)
    # Without a mask function of the same name padding masks would silently become None.
    AttentionMaskInterface.register(ATTENTION, turboquant_mask)


@torch.compiler.disable
def turboquant_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries over what a `TurboQuantLayer` holds, or over plain states.

    Parameters
    ----------
    module : torch.nn.Module
        The attention module.
    query : torch.Tensor
        [batch, heads, queries, head_dim].
    key, value : torch.Tensor
        [batch, key-value heads, keys, head_dim] as the cache returned them.
    attention_mask : torch.Tensor, optional
        As `turboquant_mask` makes it, or a mask [batch, 1, queries, keys], bool or to be added.
    dropout, scaling : float
        As in transformers; dropout only where states are plain.

    Returns
    -------
    tuple
        Output [batch, queries, heads, head_dim], and None for the weights, which are never formed.

    Raises
    ------
    ValueError
        For soft-capped logits and learned sinks, which packed states do not support.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} must be None for attn_implementation={ATTENTION!r}; use 'eager'")
    view = AttentionView.of(key)
    if view is not None:
        view.layer.take(query, attention_mask)
    if view is None or view.prompt:
        return _plain(module, query, key, value, attention_mask, dropout, scaling, **kwargs), None
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_attention(query, view, attention_mask, factor).transpose(1, 2).contiguous(), None


def _plain(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    **kwargs: Any,
) -> torch.Tensor:
    """Plain sdpa over full-precision states, causal and aligned to the last key: [batch, queries, heads, head_dim]."""
    queries, keys = query.shape[2], key.shape[2]
    explicit = mask is not None and mask.ndim == 4
    if mask is not None:
        mask = mask[..., :keys]  # a mask for a fixed capacity is longer
    causal = getattr(module, "is_causal", True) if kwargs.get("is_causal") is None else kwargs["is_causal"]
    if explicit or (mask is None and (queries == 1 or queries == keys or not causal)):
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
    kwargs["is_causal"] = False
    parts = []
    for start in range(0, queries, _PADDED_QUERIES):
        part = query[:, :, start : start + _PADDED_QUERIES]
        seen = causal_columns(start, part.shape[2], queries, keys, query.device) if causal else None
        full = seen[None, None] if mask is None else mask[:, None, None, :]
        if mask is not None and seen is not None:
            full = full & seen
        parts.append(
            sdpa_attention_forward(
                module, part, key, value, full, dropout=dropout, scaling=scaling, **kwargs
            )[0]
        )
    return torch.cat(parts, dim=1)


@torch.no_grad()
def packed_attention(
    query: torch.Tensor, view: AttentionView, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention over packed and full-precision tokens of one layer.

    Parameters
    ----------
    query : torch.Tensor
        [batch, heads, queries, d], those of the last tokens of the view.
    view : AttentionView
        What is attended to.
    mask : torch.Tensor, optional
        bool [batch, keys], or bool or additive [batch or 1, heads or 1, queries, keys].
    scaling : float
        Factor of the logits.

    Returns
    -------
    torch.Tensor
        [batch, heads, queries, d of the values], dtype of `query`.
    """
    stats = view.layer.shared.stats
    padding = None if mask is None else Padding.of(mask)
    if mask is None or padding is not None:
        out = fused_attention(query, view, padding, scaling)
        if out is not None:
            stats.fused += 1
            return out
    view = view.settled()
    if view.packed:
        stats.fallback += 1
    else:
        stats.plain += 1
    kv_heads = view.keys.shape[1]
    step = max(1, _SCORES // (query.shape[0] * query.shape[1] * _BLOCK))
    parts = [
        _attend(query[:, :, start : start + step], start, query.shape[2], view, mask, scaling, kv_heads)
        for start in range(0, query.shape[2], step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend(
    query: torch.Tensor,
    start: int,
    queries: int,
    view: AttentionView,
    mask: torch.Tensor | None,
    scaling: float,
    kv_heads: int,
) -> torch.Tensor:
    """`packed_attention` of some of the queries, the first of them at `start` of `queries`."""
    batch, heads, n, _ = query.shape
    grouped = query.float().reshape(batch, kv_heads, heads // kv_heads * n, -1)
    keys, values = view.layer.key_store, view.layer.value_store
    total = SoftmaxSum(grouped, view.values.shape[-1])
    if view.packed:
        rotated = grouped @ keys.codec.basis
        shift = 0.0 if keys.codec.mean is None else grouped @ keys.codec.mean.transpose(1, 2)
        for first in range(0, view.packed, _BLOCK):
            last = min(first + _BLOCK, view.packed)
            logits = (rotated @ keys.decode_rotated(first, last).transpose(2, 3) + shift) * scaling
            columns = slice(view.sinks + first, view.sinks + last)
            total.add(_masked(logits, mask, columns, start, heads), values.decode_rotated(first, last))
        total.turn(values.codec.rotation.T)
        if values.codec.mean is not None:
            total.shift(values.codec.mean)
    logits = grouped @ view.keys.float().transpose(2, 3) * scaling
    # The masks count tokens in order; the window's start and end lie around the packed ones.
    seen = causal_columns(start, n, queries, view.keys.shape[2], query.device)
    logits = logits.view(batch, heads, n, -1).masked_fill(~seen, -torch.inf).view_as(logits)
    ends = torch.arange(view.keys.shape[2], device=query.device)
    ends = torch.where(ends < view.sinks, ends, ends + view.packed)
    total.add(_masked(logits, mask, ends, start, heads), view.values.float())
    return total.result().reshape(batch, heads, n, -1).to(query.dtype)


def _masked(
    logits: torch.Tensor, mask: torch.Tensor | None, columns: Any, start: int, heads: int
) -> torch.Tensor:
    """Logits [batch, kv heads, group * n, keys] under a mask's `columns`, for queries from `start` on."""
    if mask is None:
        return logits
    batch, kv_heads, rows, keys = logits.shape
    n = rows * kv_heads // heads
    part = mask[:, None, None, :] if mask.ndim == 2 else mask[:, :, start : start + n]
    part = part[..., columns]
    split = logits.view(batch, heads, n, keys)
    split = split.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else split + part
    return split.view(batch, kv_heads, rows, keys)
