"""Byte order of packed states that the attention kernel reads: tiles of 16 tokens, each lane's codes side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from tqcore.config import CHAIN_RATES, chain_layout

__all__ = ["PackedLayout", "supported"]

_HEAD_DIMS = (64, 128, 256)
_RATES = (2.0, 2.5, 3.0, 3.5, 4.0)
_LANES = 32
_PIECES = (16, 8, 4, 2)  # bytes of a lane's loads


def supported(head_dim: int, bits: float) -> bool:
    """Whether the kernel reads states of `head_dim` dimensions at `bits` bits per dimension."""
    return head_dim in _HEAD_DIMS and bits in _RATES


@dataclass(frozen=True)
class PackedLayout:
    """Where the nibbles of 16 tokens lie in a tile.

    A warp's lane l = 4 g + t decodes, of keys, quarter t of the dimensions of tokens 2 g and 2 g + 1, and of values,
    sixteenths g and g + 8 (of 64 dimensions eighth g) of tokens 4 t to 4 t + 3. Four nibbles that are looked up in one
    table lie side by side: of keys those of a token at one place of four periods in a row, of values those of four
    tokens at one place. Keys go by groups of four periods, then by places, then by tokens; values by places, then by
    sixteenths. Where a quarter of a key has two periods, the four nibbles are those of both tokens. All that a lane has
    forms one string, cut into pieces of 16, 8, 4 and 2 bytes, largest first; the pieces of a kind of all lanes follow
    each other.

    Parameters
    ----------
    head_dim : int
        64, 128 or 256.
    bits : float
        2, 2.5, 3, 3.5 or 4 bits per dimension.
    role : str
        "key" or "value".

    Raises
    ------
    ValueError
        For other values.
    """

    head_dim: int
    bits: float
    role: str

    tile_tokens = 16

    def __post_init__(self) -> None:
        if not supported(self.head_dim, self.bits):
            raise ValueError(
                f"head_dim must be one of {_HEAD_DIMS} and bits one of {_RATES}, "
                f"got head_dim={self.head_dim!r} and bits={self.bits!r}"
            )
        if self.role not in ("key", "value"):
            raise ValueError(f"role must be 'key' or 'value', got {self.role!r}")

    @property
    def code_size(self) -> int:
        """Bytes of a row-major code."""
        return chain_layout(self.head_dim, *CHAIN_RATES[self.bits]) // 2

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile: those of 16 codes."""
        return self.tile_tokens * self.code_size

    @property
    def lane_bytes(self) -> int:
        """Bytes of a tile that one lane reads."""
        return self.tile_bytes // _LANES

    @property
    def pieces(self) -> tuple[int, ...]:
        """Sizes in bytes of a lane's loads, in order."""
        sizes, left = [], self.lane_bytes
        for size in _PIECES:
            sizes += [size] * (left // size)
            left %= size
        return tuple(sizes)

    def source(self) -> torch.Tensor:
        """For each nibble of a tile its place in the 16 row-major codes: int64 [2 * tile_bytes]."""
        lane = torch.arange(_LANES)
        g, t = lane // 4, lane % 4
        row = 2 * self.code_size
        p, q = CHAIN_RATES[self.bits]
        if self.role == "key":
            periods = self.head_dim // 4 // q
            if periods < 4:
                places = [(i, j + p * e) for j in range(p) for i in (0, 1) for e in range(periods)]
            else:
                places = [
                    (i, j + p * (first + e))
                    for first in range(0, periods, 4)
                    for j in range(p)
                    for i in (0, 1)
                    for e in range(4)
                ]
            starts = [(2 * g + i) * row + t * (row // 4) + place for i, place in places]
        else:
            chunks = [g] if self.head_dim == 64 else [g, g + 8]
            share = row // 8 // len(chunks)
            starts = [
                (4 * t + e) * row + chunk * share + j
                for j in range(share)
                for chunk in chunks
                for e in range(4)
            ]
        strings = torch.stack(starts, dim=1)
        pieces, start = [], 0
        for size in self.pieces:
            pieces.append(strings[:, start : start + 2 * size].flatten())
            start += 2 * size
        return torch.cat(pieces)

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Tiles uint8 [..., tokens / 16, tile_bytes] of row-major codes uint8 [..., tokens, code_size].

        Raises
        ------
        ValueError
            If tokens is no multiple of 16, or the codes have another size.
        """
        if codes.shape[-1] != self.code_size or codes.shape[-2] % self.tile_tokens:
            raise ValueError(
                f"codes must be [..., multiple of {self.tile_tokens}, {self.code_size}], got {tuple(codes.shape)}"
            )
        tiles = codes.reshape(*codes.shape[:-2], -1, self.tile_bytes)
        return _gathered(tiles, _order(self, False, codes.device))

    def unpack(self, tiles: torch.Tensor) -> torch.Tensor:
        """Row-major codes uint8 [..., tokens, code_size] of tiles uint8 [..., tokens / 16, tile_bytes].

        Raises
        ------
        ValueError
            If tiles have another size.
        """
        if tiles.shape[-1] != self.tile_bytes:
            raise ValueError(f"tiles must be [..., tiles, {self.tile_bytes}], got {tuple(tiles.shape)}")
        rows = _gathered(tiles, _order(self, True, tiles.device))
        return rows.reshape(*tiles.shape[:-2], -1, self.code_size)


@lru_cache(maxsize=64)
def _order(layout: PackedLayout, inverse: bool, device: torch.device) -> tuple[torch.Tensor, bool]:
    """Order of a gather, and whether it is of whole bytes rather than of nibbles."""
    order = layout.source()
    if inverse:
        order = order.argsort()
    pairs = order.view(-1, 2)
    whole = bool((pairs[:, 0] % 2 == 0).all() and (pairs[:, 1] == pairs[:, 0] + 1).all())
    return (pairs[:, 0] // 2 if whole else order).to(device), whole


def _gathered(tiles: torch.Tensor, order: tuple[torch.Tensor, bool]) -> torch.Tensor:
    index, whole = order
    if whole:
        return tiles[..., index]
    nibbles = torch.stack([tiles & 15, tiles >> 4], dim=-1).flatten(-2)[..., index]
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4
