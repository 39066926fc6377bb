"""What the kernels compute, in plain torch float32, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tqcore.config import CHAIN_RATES
from tqkv.layout import PackedLayout

if TYPE_CHECKING:
    from tqkv.kernels.decode import PackedStates

__all__ = ["decode_attention", "decode_rows", "rotate"]


def rotate(x: torch.Tensor, signs: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Rows float32 [..., d] after rounds of signs [rounds, d] and Walsh-Hadamard transforms, or before them."""
    d = x.shape[-1]
    matrix = torch.ones(1, 1, device=x.device)
    while len(matrix) < d:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    for sign in signs.flip(0) if inverse else signs:
        x = (x @ matrix) * d**-0.5 * sign if inverse else (x * sign) @ matrix * d**-0.5
    return x


def decode_rows(codes: torch.Tensor, head_dim: int, bits: float, tables: np.ndarray) -> torch.Tensor:
    """Coordinates float32 [..., head_dim] of row-major codes uint8 [..., code_size] (tqcore/README.md, section 2)."""
    p, q = CHAIN_RATES[bits]
    nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).long()
    dims = torch.arange(head_dim, device=codes.device)
    values = torch.as_tensor(tables, device=codes.device)
    total = torch.zeros(*codes.shape[:-1], head_dim, device=codes.device)
    for offset in range(values.shape[1]):
        nibble = nibbles[..., (dims * p // q - offset) % nibbles.shape[-1]]
        total = total + values[dims % q, offset, nibble]
    return total


def _states(states: PackedStates, role: str, head_dim: int) -> torch.Tensor:
    """Rotated states float32 [batch, kv_heads, capacity, head_dim]."""
    layout = PackedLayout(head_dim, states.bits, role)
    rows = decode_rows(layout.unpack(states.codes), head_dim, states.bits, states.tables.values())
    return rows * states.scales[..., None].float()


def decode_attention(
    q: torch.Tensor,
    keys: PackedStates,
    values: PackedStates,
    lengths: torch.Tensor,
    *,
    scaling: float,
    starts: torch.Tensor | None = None,
    extra_k: torch.Tensor | None = None,
    extra_v: torch.Tensor | None = None,
    extra_lengths: torch.Tensor | None = None,
    extra_mask: torch.Tensor | None = None,
    key_queries: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention over packed and full-precision tokens; arguments as in `tqkv.kernels.decode.decode_attention`."""
    batch, heads, new, d = q.shape
    kv_heads = keys.codes.shape[1]
    grouped = q.float().reshape(batch, kv_heads, heads // kv_heads * new, d)
    turned = rotate(grouped, keys.signs) if key_queries is None else key_queries.reshape(grouped.shape)
    logits = turned @ _states(keys, "key", d).transpose(2, 3)
    if keys.mean is not None:
        logits = logits + grouped @ keys.mean[:, :, None]
    tokens = torch.arange(logits.shape[-1], device=q.device)
    seen = tokens < lengths[:, None]
    if starts is not None:
        seen &= tokens >= starts[:, None]
    seen = seen[:, None, None, :].expand(logits.shape)
    held = _states(values, "value", d)
    # What lies behind a masked token may be anything, NaN too.
    held = torch.where(seen[:, :, :1].transpose(2, 3), held, 0.0)
    held = rotate(held, values.signs, inverse=True)
    if extra_k is not None and extra_v is not None:
        width = extra_k.shape[2]
        logits = torch.cat([logits, grouped @ extra_k.float().transpose(2, 3)], dim=3)
        tokens = torch.arange(width, device=q.device)
        ends = torch.full((batch,), width, device=q.device) if extra_lengths is None else extra_lengths
        valid = tokens < ends[:, None]
        if extra_mask is not None:
            valid &= extra_mask
        order = torch.arange(new, device=q.device)
        causal = tokens < ends[:, None, None] - (new - 1 - order)[:, None]
        visible = (valid[:, None] & causal)[:, None, None].expand(-1, kv_heads, heads // kv_heads, -1, -1)
        seen = torch.cat([seen, visible.reshape(batch, kv_heads, -1, width)], dim=3)
        window = torch.where(valid[:, None, :, None], extra_v.float(), 0.0)
        held = torch.cat([held, window], dim=2)
    logits = torch.where(seen, logits * scaling, -torch.inf)
    top = logits.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    weights = torch.exp(logits - top)
    total = weights.sum(dim=-1, keepdim=True)
    result = torch.where(total == 0, 0.0, weights @ held / total)
    result = result.reshape(batch, heads, new, d).to(q.dtype)
    return result if out is None else out.copy_(result)
