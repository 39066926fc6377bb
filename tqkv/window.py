"""The tokens of a layer that stay in full precision: the first ones and the last ones, side by side."""

from __future__ import annotations

import torch

__all__ = ["Window"]


class Window:
    """Keys and values of the first tokens (sinks) and of the latest, in buffers of fixed size.

    Slots hold tokens in order: first the sinks, then those that follow the packed tokens.

    Parameters
    ----------
    key_states, value_states : torch.Tensor
        [batch, heads, tokens, d] whose shape, dtype and device the buffers take.
    slots : int
        Tokens there is room for.

    Attributes
    ----------
    count : int
        Slots in use.
    """

    def __init__(self, key_states: torch.Tensor, value_states: torch.Tensor, slots: int) -> None:
        self._keys = key_states.new_zeros(*key_states.shape[:2], slots, key_states.shape[3])
        self._values = value_states.new_zeros(*value_states.shape[:2], slots, value_states.shape[3])
        self.slots, self.count = slots, 0

    @property
    def keys(self) -> torch.Tensor:
        """Keys [batch, heads, count, d], a view."""
        return self._keys[:, :, : self.count]

    @property
    def values(self) -> torch.Tensor:
        """Values [batch, heads, count, d], a view."""
        return self._values[:, :, : self.count]

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        return self._keys.nbytes + self._values.nbytes

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, heads, slots, d], all slots."""
        return self._keys, self._values

    def append(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Put states [batch, heads, n, d] behind the others; there must be room."""
        stop = self.count + key_states.shape[2]
        self._keys[:, :, self.count : stop] = key_states.detach()
        self._values[:, :, self.count : stop] = value_states.detach()
        self.count = stop

    def select_slots(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, heads, n, d] in `slots`, int64 [n] on the device."""
        return self._keys.index_select(2, slots), self._values.index_select(2, slots)

    def put(self, slots: torch.Tensor, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Put states [batch, heads, n, d] in `slots`, int64 [n] on the device."""
        self._keys.index_copy_(2, slots, key_states.detach())
        self._values.index_copy_(2, slots, value_states.detach())

    def drop(self, first: int, n: int) -> None:
        """Take out the `n` tokens from slot `first` on and close the gap."""
        last = self.count - n
        for buffer in (self._keys, self._values):
            buffer[:, :, first:last] = buffer[:, :, first + n : self.count].clone()
        self.count = last

    def select(self, index: torch.Tensor) -> None:
        """Keep the batch rows `index` int64 [batch'], in this order; in place where their number is the same."""
        index = index.to(self._keys.device)
        keys, values = self._keys.index_select(0, index), self._values.index_select(0, index)
        if keys.shape == self._keys.shape:
            self._keys.copy_(keys)
            self._values.copy_(values)
        else:
            self._keys, self._values = keys, values
