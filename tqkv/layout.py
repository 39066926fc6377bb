"""Byte order of packed tokens: the codes of 16 tokens lie as the lanes of a warp read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["PackedLayout", "supported"]

_RATES = (2.0, 2.5, 3.0, 3.5, 4.0)
_HEAD_DIMS = (64, 128, 256)
_LANES = 32
_VALUE_CHUNKS = 8  # parts of a value's row; each must be whole bytes


def supported(head_dim: int, key_bits: float, value_bits: float) -> bool:
    """Whether the fused kernel reads codes of these dimensions and rates."""
    return head_dim in _HEAD_DIMS and all(
        bits in _RATES and head_dim * bits % (8 * _VALUE_CHUNKS) == 0 for bits in (key_bits, value_bits)
    )


@dataclass(frozen=True)
class PackedLayout:
    """Where the bytes of 16 tokens lie.

    Lane ``4 g + t`` of a warp (g < 8, t < 4) decodes what its place in the fragments of ``mma.m16n8k16`` asks for: of
    keys, part t of 4 of the tokens g and g + 8; of values, part g of 8 of the tokens 2t, 2t + 1, 2t + 8 and 2t + 9. Its
    bytes, in this order, are cut into units of `unit_bytes`, and a tile holds unit 0 of all lanes, then unit 1, and so on.

    Parameters
    ----------
    head_dim : int
        64, 128 or 256.
    bits : float
        2, 2.5, 3, 3.5 or 4; whole ones at head_dim 64.
    role : str
        "key" or "value".

    Raises
    ------
    ValueError
        If the fused kernel reads no such codes.
    """

    head_dim: int
    bits: float
    role: str

    def __post_init__(self) -> None:
        if self.role not in ("key", "value"):
            raise ValueError(f"role must be 'key' or 'value', got {self.role!r}")
        if not supported(self.head_dim, self.bits, self.bits):
            raise ValueError(
                "head_dim and bits must be 128 or 256 and 2, 2.5, 3, 3.5 or 4, or 64 and 2, 3 or 4, "
                f"got {self.head_dim!r} and {self.bits!r}"
            )

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile: the rows of one matrix instruction."""
        return 16

    @property
    def code_size(self) -> int:
        """Bytes of a token's row-major code."""
        return int(self.head_dim * self.bits) // 8

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile."""
        return self.tile_tokens * self.code_size

    @property
    def lane_bytes(self) -> int:
        """Bytes of a tile that one lane reads."""
        return self.tile_bytes // _LANES

    @property
    def unit_bytes(self) -> int:
        """Bytes that a lane reads at once: 16, 8, 4 or 2."""
        return next(unit for unit in (16, 8, 4, 2) if self.lane_bytes % unit == 0)

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Tiles uint8 [..., tokens / 16, tile_bytes] of row-major codes uint8 [..., tokens, code_size]."""
        if codes.shape[-1] != self.code_size or codes.shape[-2] % self.tile_tokens:
            raise ValueError(
                f"codes must be [..., a multiple of {self.tile_tokens}, {self.code_size}], got {tuple(codes.shape)}"
            )
        lead = codes.shape[:-2]
        tiles = codes.shape[-2] // self.tile_tokens
        if self.role == "key":
            split = codes.reshape(-1, tiles, 2, 8, 4, self.code_size // 4)  # half, g, t, byte
            lanes = split.permute(0, 1, 3, 4, 2, 5)
        else:
            split = codes.reshape(-1, tiles, 2, 4, 2, 8, self.code_size // 8)  # half, t, odd, g, byte
            lanes = split.permute(0, 1, 5, 3, 2, 4, 6)
        units = lanes.reshape(-1, tiles, _LANES, self.lane_bytes // self.unit_bytes, self.unit_bytes)
        return units.transpose(2, 3).reshape(*lead, tiles, self.tile_bytes)

    def unpack(self, tiles: torch.Tensor) -> torch.Tensor:
        """Row-major codes uint8 [..., tokens, code_size] of tiles uint8 [..., tokens / 16, tile_bytes]."""
        if tiles.shape[-1] != self.tile_bytes:
            raise ValueError(f"tiles must be [..., tiles, {self.tile_bytes}], got {tuple(tiles.shape)}")
        lead, count = tiles.shape[:-2], tiles.shape[-2]
        units = tiles.reshape(-1, count, self.lane_bytes // self.unit_bytes, _LANES, self.unit_bytes)
        lanes = units.transpose(2, 3)
        if self.role == "key":
            rows = lanes.reshape(-1, count, 8, 4, 2, self.code_size // 4).permute(0, 1, 4, 2, 3, 5)
        else:
            rows = lanes.reshape(-1, count, 8, 4, 2, 2, self.code_size // 8).permute(0, 1, 4, 3, 5, 2, 6)
        return rows.reshape(*lead, count * self.tile_tokens, self.code_size)
