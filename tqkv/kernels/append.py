"""The rings of a cache of fixed capacity: a new token put in, and those that leave encoded for all layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import torch

from tqcore.gpu.rtc import Kernel, Long, compile_module
from tqkv.codec import StateCodec
from tqkv.layout import PackedLayout

__all__ = ["RingSide", "append_leaving", "put_token"]

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


def put_token(
    states: tuple[torch.Tensor, torch.Tensor],
    windows: tuple[torch.Tensor, torch.Tensor],
    slot: torch.Tensor,
    length: torch.Tensor,
) -> None:
    """Put a token's keys and values in one slot of a layer's windows and count it, in one launch.

    Parameters
    ----------
    states : tuple of torch.Tensor
        Keys and values [batch, kv_heads, 1, head_dim], the last dimension contiguous.
    windows : tuple of torch.Tensor
        [batch, kv_heads, slots, head_dim], contiguous, dtype and device of the states.
    slot : torch.Tensor
        int64 [1] on the device.
    length : torch.Tensor
        int64 [], tokens held, which grows by one.
    """
    keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in states)
    batch, heads, slots, d = windows[0].shape
    device = keys.device
    strides = (Long(n) for x in (keys, values) for n in x.stride()[:2])
    with torch.cuda.device(device):
        put = _kernels(_STATES[keys.dtype], device.index)[0]
        put(
            (batch * heads, 2), (_THREADS,), (keys, values, *windows, slot, length, *strides, heads, slots, d)
        )


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
        _, gather, settle = _kernels(_STATES[window.dtype], device.index)
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
def _kernels(state: int, _device: int) -> tuple[Kernel, Kernel, Kernel]:
    source = files("tqkv").joinpath("kernels", "append.cu").read_text(encoding="utf-8")
    module = compile_module(source, (f"-DSTATE={state}",))
    return module.kernel("put"), module.kernel("gather"), module.kernel("settle")
