"""Packed states of one side of one layer: bytes in tiles of 16 tokens, and their scalars."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tqkv.codec import StateCodec
from tqkv.config import TILE_TOKENS
from tqkv.layout import PackedLayout

__all__ = ["Due", "PackedStore"]

_LEAST_GROWTH = 256  # tokens
_GROWTH = 16  # a store grows by this fraction of itself, so that copying stays rare and spare room small


@dataclass(frozen=True)
class Due:
    """Keys that are to be encoded.

    Attributes
    ----------
    keys : torch.Tensor
        [batch, heads, tokens, d].
    first, n : int
        Those meant: `n` tokens from `first` on.
    at : int
        The packed token that the first becomes.
    fit : bool
        Whether mean and plan are made for these keys.
    """

    keys: torch.Tensor
    first: int
    n: int
    at: int
    fit: bool


class PackedStore:
    """Codes of tokens in the order of the kernel's layout where it has one for them, else row by row.

    Parameters
    ----------
    codec : StateCodec
        The code of the states.
    layout : PackedLayout or None
        The kernel's order of bytes in a tile; None keeps rows one after another.
    batch, heads : int
        Rows and key-value heads.
    device : torch.device
        Where everything lies.

    Attributes
    ----------
    codes : torch.Tensor
        uint8 [batch, heads, tiles, tile_bytes].
    scalars : torch.Tensor
        float16 [n_scalars, batch, heads, capacity].
    """

    def __init__(
        self, codec: StateCodec, layout: PackedLayout | None, batch: int, heads: int, device: torch.device
    ) -> None:
        self.codec, self.layout = codec, layout
        self.codes = torch.empty(
            batch, heads, 0, TILE_TOKENS * codec.code_size, dtype=torch.uint8, device=device
        )
        self.scalars = torch.empty(codec.n_scalars, batch, heads, 0, dtype=torch.float16, device=device)

    @property
    def capacity(self) -> int:
        """Tokens there is room for."""
        return self.scalars.shape[-1]

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        return self.codes.nbytes + self.scalars.nbytes

    def reserve(self, tokens: int, exact: bool = False) -> None:
        """Make room for `tokens`: just so many for an empty store or if `exact`, else with room to grow."""
        if tokens <= self.capacity:
            return
        if self.capacity and not exact:
            tokens = max(tokens, self.capacity + max(_LEAST_GROWTH, self.capacity // _GROWTH))
        tiles = -(-tokens // TILE_TOKENS)
        codes = self.codes.new_zeros(*self.codes.shape[:2], tiles, self.codes.shape[3])
        codes[:, :, : self.codes.shape[2]] = self.codes
        self.codes = codes
        scalars = self.scalars.new_zeros(*self.scalars.shape[:3], tiles * TILE_TOKENS)
        scalars[..., : self.capacity] = self.scalars
        self.scalars = scalars

    def write(self, at: int, codes: torch.Tensor, scalars: torch.Tensor) -> None:
        """Put codes [batch, heads, n, code_size] and scalars [n_scalars, batch, heads, n] at token `at`."""
        stop = at + codes.shape[2]
        self.reserve(stop)
        first = at // TILE_TOKENS
        if at % TILE_TOKENS:
            codes = torch.cat([self.rows(first * TILE_TOKENS, at), codes], dim=2)
        codes = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[2] % TILE_TOKENS))
        tiles = codes.shape[2] // TILE_TOKENS
        self.codes[:, :, first : first + tiles] = self._pack(codes)
        self.scalars[..., at:stop] = scalars

    def write_one(self, at: torch.Tensor, codes: torch.Tensor, scalars: torch.Tensor) -> None:
        """Put the codes and scalars of one token at token `at`, int64 [1] on the device; there must be room."""
        tile, place = at // TILE_TOKENS, at % TILE_TOKENS
        # A byte of a tile may belong to two tokens, so the tile is taken apart and put together again.
        rows = self._unpack(self.codes.index_select(2, tile)).index_copy(2, place, codes)
        self.codes.index_copy_(2, tile, self._pack(rows))
        self.scalars.index_copy_(3, at, scalars)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Codes uint8 [batch, heads, stop - start, code_size] of tokens."""
        first, last = start // TILE_TOKENS, -(-stop // TILE_TOKENS)
        codes = self._unpack(self.codes[:, :, first:last])
        return codes[:, :, start - first * TILE_TOKENS : stop - first * TILE_TOKENS]

    def decode_rotated(self, start: int, stop: int) -> torch.Tensor:
        """Rotated states float32 [batch, heads, stop - start, d] of tokens."""
        return self.codec.decode_rotated(self.rows(start, stop), self.scalars[..., start:stop])

    def decode(self, start: int, stop: int) -> torch.Tensor:
        """States float32 [batch, heads, stop - start, d] of tokens."""
        return self.codec.decode(self.rows(start, stop), self.scalars[..., start:stop])

    def select(self, index: torch.Tensor) -> None:
        """Keep the batch rows `index` int64 [batch'], in this order; in place where their number is the same."""
        index = index.to(self.codes.device)
        codes, scalars = self.codes.index_select(0, index), self.scalars.index_select(1, index)
        if codes.shape == self.codes.shape:
            self.codes.copy_(codes)
            self.scalars.copy_(scalars)
        else:
            self.codes, self.scalars = codes, scalars

    def _pack(self, codes: torch.Tensor) -> torch.Tensor:
        if self.layout is not None:
            return self.layout.pack(codes)
        return codes.reshape(*codes.shape[:2], -1, self.codes.shape[3])

    def _unpack(self, tiles: torch.Tensor) -> torch.Tensor:
        if self.layout is not None:
            return self.layout.unpack(tiles)
        return tiles.reshape(*tiles.shape[:2], -1, self.codec.code_size)
