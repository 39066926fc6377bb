"""When the fused kernel can attend to a view, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from tqcore.rotation import HadamardRotation
from tqkv.codec import StateCodec
from tqkv.config import CacheOptions
from tqkv.layout import PackedLayout, supported
from tqkv.masks import Padding
from tqkv.storage import PackedStore
from tqkv.tables import byte_tables
from tqkv.view import AttentionView

if TYPE_CHECKING:
    from tqkv.kernels.decode import PackedStates

__all__ = ["fused_attention", "layouts"]

_MAX_QUERIES = (
    8  # the kernel reads all codes once for every 8 rows, so longer chunks are better off decoding once
)


def layouts(
    options: CacheOptions, key_dim: int, value_dim: int
) -> tuple[PackedLayout | None, PackedLayout | None]:
    """Byte orders of keys and values that the kernel reads; None for both where it does not read these codes."""
    bits = (options.key_bits, options.value_bits)
    if key_dim != value_dim or not all(supported(key_dim, b) for b in bits):
        return None, None
    if options.code == "chain" and options.memory != 2:
        return None, None
    if options.code == "prod" or (options.code == "mse" and not set(bits) <= {2.0, 4.0}):
        return None, None
    return PackedLayout(key_dim, bits[0], "key"), PackedLayout(key_dim, bits[1], "value")


def fused_attention(
    query: torch.Tensor, view: AttentionView, padding: Padding | None, scaling: float
) -> torch.Tensor | None:
    """Attention of a few queries over a view by the kernel that reads codes.

    Parameters
    ----------
    query : torch.Tensor
        [batch, heads, queries, d], those of the last tokens.
    view : AttentionView
        What is attended to.
    padding : Padding, optional
        Tokens on the left that are masked.
    scaling : float
        Factor of the logits.

    Returns
    -------
    torch.Tensor or None
        [batch, heads, queries, d] in the dtype of `query`; None where the kernel does not apply.
    """
    keys, values = view.layer.key_store, view.layer.value_store
    attend = _kernel(query.device)
    if (
        attend is None
        or keys.layout is None
        or query.shape[2] > _MAX_QUERIES
        or query.dtype != view.layer.dtype
    ):
        return None
    held = view.counted(padding)
    return attend(
        query,
        _packed(keys),
        _packed(values),
        held.lengths,
        scaling=scaling,
        starts=held.starts,
        extra_k=held.keys,
        extra_v=held.values,
        extra_mask=held.mask,
        key_queries=_key_queries(query, keys.codec),
    )


def _kernel(device: torch.device) -> Callable[..., torch.Tensor] | None:
    """The kernel for a device, loaded on first use; None where there is none."""
    if device.type != "cuda":
        return None
    from tqkv.kernels.decode import decode_attention

    return decode_attention


def _key_queries(query: torch.Tensor, codec: StateCodec) -> torch.Tensor | None:
    """Queries float32 [batch, heads, n, d] in the basis of keys coded by a plan; None without one."""
    if codec.plan is None:
        return None
    batch, _, _, d = query.shape
    grouped = query.float().reshape(batch, len(codec.basis), -1, d)
    return (grouped @ codec.basis).view(query.shape)


def _packed(store: PackedStore) -> PackedStates:
    from tqkv.kernels.decode import PackedStates

    codec = store.codec
    return PackedStates(
        store.codes,
        store.scalars[0],
        codec.bits,
        byte_tables(codec.code, codec.head_dim, codec.bits),
        _signs(codec.head_dim, codec.seed, store.codes.device),
        None if codec.mean is None else codec.mean[:, 0],
    )


@lru_cache(maxsize=64)
def _signs(head_dim: int, seed: int, device: torch.device) -> torch.Tensor:
    """Signs float32 [3, d] of the rotation's rounds; a power of two has no second transform in a round."""
    return torch.from_numpy(np.ascontiguousarray(HadamardRotation(head_dim, seed).signs[:, 0])).to(device)
