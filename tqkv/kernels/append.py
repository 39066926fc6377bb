"""Encode, in a few launches for all layers of a cache, the one token that each of their rings lets go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import torch

from tqcore.gpu.rtc import Kernel, compile_module
from tqkv.codec import StateCodec
from tqkv.layout import PackedLayout

__all__ = ["RingSide", "append_leaving"]

_STATES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_THREADS = 128


@dataclass(frozen=True)
class RingSide:
    """Keys or values of one layer.

    Attributes
    ----------
    window : torch.Tensor
        [batch, kv_heads, slots, head_dim], contiguous: the ring.
    codes : torch.Tensor
        uint8 [batch, kv_heads, tiles, tile_bytes], contiguous.
    scales : torch.Tensor
        float16 [batch, kv_heads, 16 * tiles], contiguous.
    mean : torch.Tensor or None
        float32 [kv_heads, 1, head_dim], contiguous, taken off before coding.
    weights : torch.Tensor or None
        float32 [kv_heads, head_dim, head_dim] of a plan: centred states, rows, times it are coded.
    """

    window: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    mean: torch.Tensor | None
    weights: torch.Tensor | None = None


def append_leaving(
    sides: Sequence[RingSide],
    codec: StateCodec,
    layout: PackedLayout,
    slot: torch.Tensor,
    token: torch.Tensor,
) -> None:
    """Encode what lies in one slot of every ring, and put it at one token of every store.

    Nothing is asked of the device, and after one call with the same buffers nothing is sent to it either, so that a
    CUDA graph may capture it.

    Parameters
    ----------
    sides : sequence of RingSide
        Keys, or values, of layers of one shape, dtype and device.
    codec : StateCodec
        Their code; its mean and plan are not looked at. Chain or scalar codes of one scalar a state.
    layout : PackedLayout
        The order of the stores.
    slot, token : torch.Tensor
        int64 [1] on the device.
    """
    window = sides[0].window
    batch, heads, slots, d = window.shape
    device, capacity = window.device, sides[0].scales.shape[-1]
    pointers = tuple(
        0 if tensor is None else tensor.data_ptr()
        for side in sides
        for tensor in (side.window, side.mean, side.codes, side.scales)
    )
    table, places = _table(pointers, device), _places(layout, device)
    grid = (batch * heads, len(sides))
    rows = torch.empty(len(sides) * batch * heads, d, device=device)
    with torch.cuda.device(device):
        gather, settle = _kernels(_STATES[window.dtype], device.index)
        gather(grid, (_THREADS,), (table, slot, rows, heads, slots, d))
        _weigh(rows.view(len(sides), batch, heads, d), sides)
        codes, scalars = codec.encode_rows(rows)
        scales = scalars[0].to(torch.float16)
        arguments = (
            *(table, token, codes, scales, places),
            *(2 * layout.code_size, layout.tile_bytes, capacity),
        )
        settle(grid, (_THREADS,), arguments)


def _weigh(rows: torch.Tensor, sides: Sequence[RingSide]) -> None:
    """Apply the plan of each layer to its rows [layers, batch, kv_heads, d], in place."""
    for part, side in zip(rows, sides, strict=True):
        if side.weights is not None:
            part.copy_((part[..., None, :] @ side.weights)[..., 0, :])


@lru_cache(maxsize=64)
def _table(pointers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Addresses as ``Side`` of append.cu has them, int64 [4 * layers]."""
    return torch.tensor(pointers, dtype=torch.int64).to(device)


@lru_cache(maxsize=64)
def _places(layout: PackedLayout, device: torch.device) -> torch.Tensor:
    """Where the nibbles of every token of a tile lie, int32 [16, nibbles of a token]."""
    return layout.source().argsort().to(torch.int32).view(layout.tile_tokens, -1).to(device)


@lru_cache(maxsize=64)
def _kernels(state: int, _device: int) -> tuple[Kernel, Kernel]:
    source = files("tqkv").joinpath("kernels", "append.cu").read_text(encoding="utf-8")
    module = compile_module(source, (f"-DSTATE={state}",))
    return module.kernel("gather"), module.kernel("settle")
