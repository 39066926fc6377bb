"""Softmax-weighted sums accumulated block by block, in float32."""

from __future__ import annotations

import torch

__all__ = ["SoftmaxSum"]


class SoftmaxSum:
    """Running ``softmax(logits) @ values`` over blocks of keys (online softmax, arXiv 1805.02867).

    Parameters
    ----------
    like : torch.Tensor
        [batch, heads, rows, any], whose shape and device the sums take.
    dims : int
        Dimensions of the values.
    """

    def __init__(self, like: torch.Tensor, dims: int) -> None:
        shape = like.shape[:3]
        self._top = torch.full((*shape, 1), -torch.inf, dtype=torch.float32, device=like.device)
        self._weight = torch.zeros(*shape, 1, dtype=torch.float32, device=like.device)
        self._sum = torch.zeros(*shape, dims, dtype=torch.float32, device=like.device)

    def add(self, logits: torch.Tensor, values: torch.Tensor) -> None:
        """Take in keys with float32 logits [batch, heads, rows, keys] and values [batch, heads, keys, dims]."""
        if not logits.shape[-1]:
            return
        top = torch.maximum(self._top, logits.amax(dim=-1, keepdim=True))
        # A row that has seen nothing but masked keys keeps weight zero.
        base = torch.where(top == -torch.inf, 0.0, top)
        weights = torch.exp(logits - base)
        keep = torch.exp(self._top - base)
        self._sum = self._sum * keep + weights @ values
        self._weight = self._weight * keep + weights.sum(dim=-1, keepdim=True)
        self._top = top

    def turn(self, matrix: torch.Tensor) -> None:
        """Multiply the sum so far with `matrix` [dims, dims]."""
        self._sum = self._sum @ matrix

    def shift(self, offset: torch.Tensor) -> None:
        """Add `offset` [heads, 1, dims] to every value taken in so far."""
        self._sum = self._sum + self._weight * offset

    def result(self) -> torch.Tensor:
        """Weighted means [batch, heads, rows, dims]; zero where every key was masked."""
        return torch.where(self._weight > 0, self._sum / self._weight, 0.0)
