"""Masks for "turboquant": causal order is implied, so only padding and unusual patterns need one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import causal_mask_function, sdpa_mask

__all__ = ["Padding", "causal_columns", "turboquant_mask"]

_PADDING = "_tqkv_padding"  # attribute of a mask that says how its rows are padded


@dataclass
class Padding:
    """Left padding of a batch.

    Attributes
    ----------
    mask : torch.Tensor
        bool [batch, keys], True where a token is seen.
    starts : torch.Tensor
        int32 [batch], masked tokens at the start of each row.
    """

    mask: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> Padding | None:
        """How a mask of `turboquant_mask` pads; None if not only on the left, or for any other mask."""
        return getattr(mask, _PADDING, None)


def turboquant_mask(**kwargs: Any) -> torch.Tensor | None:
    """Mask for "turboquant".

    Parameters
    ----------
    **kwargs
        Those of `transformers.masking_utils.sdpa_mask`. While a CUDA graph is captured a padding mask is taken to pad
        on the left, since nothing can be asked of the device.

    Returns
    -------
    torch.Tensor or None
        None for plain causal attention; bool [batch, keys] (True: seen) where tokens are padded; for any other
        pattern sdpa's bool [batch, 1, queries, keys].
    """
    if kwargs.get("mask_function", causal_mask_function) is not causal_mask_function or kwargs.get(
        "use_vmap"
    ):
        return sdpa_mask(**kwargs)
    mask = kwargs.get("attention_mask")
    if mask is None:
        return None
    end = kwargs["kv_length"] + kwargs.get("kv_offset", 0)
    mask = nn.functional.pad(mask.bool(), (0, max(0, end - mask.shape[-1])), value=True)[:, :end]
    starts = (~mask).sum(dim=1, dtype=torch.int32)
    if mask.is_cuda and torch.cuda.is_current_stream_capturing():
        setattr(mask, _PADDING, Padding(mask, starts))
        return mask
    padded, left = torch.stack([starts.any(), (mask[:, 1:] >= mask[:, :-1]).all()]).tolist()
    if not padded:
        return None
    if left:
        setattr(mask, _PADDING, Padding(mask, starts))
    return mask


def causal_columns(start: int, n: int, queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Keys seen by `n` queries from `start` on, bool [n, keys], if the last of `queries` sees the last key."""
    rows = torch.arange(start, start + n, device=device)[:, None] + keys - queries
    return torch.arange(keys, device=device) <= rows
