"""Key and value states to codes and back: mean, rotation, code and scale of one side of one layer."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from tqcore.config import MIN_D
from tqcore.rotation import HadamardRotation
from tqkv.codes import row_code
from tqkv.plan import KeyPlan, fit_key_plan

__all__ = ["StateCodec"]

_ROWS = 1 << 15  # rows encoded at a time, which bounds the float32 scratch


@lru_cache(maxsize=64)
def _rotation(head_dim: int, seed: int, device: torch.device) -> torch.Tensor:
    """The rotation float32 [d, d] that all layers of a device share: data differ enough from layer to layer."""
    rows = HadamardRotation(head_dim, seed).rotate(np.eye(head_dim, dtype=np.float32))
    return torch.from_numpy(rows).to(device)


class StateCodec:
    """How the keys, or the values, of one layer are coded.

    A state x of a head becomes ``scale * code`` with ``code`` near ``sqrt(d) (x - mean) R / |x - mean|``, so that
    ``x_hat = scale * decoded @ R.T + mean``. With a plan ``(x - mean) A'`` takes the place of ``x - mean``, and in
    decoding ``A^-1 R`` that of R. Nothing but mean and plan depends on data.

    Parameters
    ----------
    head_dim : int
        Dimensions of a state, at least 8.
    bits : float
        Bits per dimension.
    code, memory, scale : str, int, str
        As in `tqkv.config.CacheOptions`.
    seed : int
        Seed of the rotation.
    device : torch.device
        Where the states are.

    Attributes
    ----------
    rotation : torch.Tensor
        float32 [d, d], R above: a row times it is the rotated row.
    mean : torch.Tensor or None
        float32 [heads, 1, d]; None where nothing is taken off.
    plan : KeyPlan or None
        Maps of the heads; None where there is only the rotation.

    Raises
    ------
    ValueError
        If `head_dim` is below 8.
    """

    def __init__(
        self,
        head_dim: int,
        bits: float,
        code: str,
        memory: int,
        scale: str,
        seed: int,
        device: torch.device,
    ) -> None:
        if head_dim < MIN_D:
            raise ValueError(f"head_dim must be at least {MIN_D}, got {head_dim}")
        self.head_dim, self.bits, self.code, self.scale, self.seed = head_dim, bits, code, scale, seed
        self.rows = row_code(code, head_dim, bits, memory, seed, device)
        self.rotation = _rotation(head_dim, seed, device)
        self.mean: torch.Tensor | None = None
        self.plan: KeyPlan | None = None

    @property
    def code_size(self) -> int:
        """Bytes of the code of a state."""
        return self.rows.code_size

    @property
    def n_scalars(self) -> int:
        """16-bit scalars of a state."""
        return self.rows.n_scalars

    @property
    def basis(self) -> torch.Tensor:
        """What turns queries, rows, towards coded coordinates: float32 [d, d], or [heads, d, d] with a plan."""
        return self.rotation if self.plan is None else self.plan.basis

    def fit_mean(self, states: torch.Tensor, seen: torch.Tensor | None = None) -> None:
        """Fix the mean of every head and channel to that of `states` [batch, heads, tokens, d].

        Tokens where `seen`, bool [batch, tokens], is False do not count.
        """
        if seen is None:
            mean = states.mean(dim=(0, 2), dtype=torch.float32)[:, None, :]
        else:
            some = torch.where(seen[:, None, :, None], states, 0.0)
            mean = some.sum(dim=(0, 2), dtype=torch.float32)[:, None, :] / seen.sum().clamp(min=1)
        # A captured graph reads the mean at its address.
        self.mean = mean if self.mean is None else self.mean.copy_(mean)

    def fit_plan(
        self,
        states: torch.Tensor,
        queries: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
    ) -> None:
        """Fix the plan to what is best for these keys and queries; arguments as in `fit_key_plan`."""
        plan = fit_key_plan(states, self.mean, self.rotation, queries, seen)
        self.plan = plan if self.plan is None else self.plan.replace(plan)

    def encode(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scalars of states.

        Parameters
        ----------
        states : torch.Tensor
            [batch, heads, tokens, d], any floating dtype. A state that is not finite gets the scalar NaN.

        Returns
        -------
        codes : torch.Tensor
            uint8 [batch, heads, tokens, code_size].
        scalars : torch.Tensor
            float16 [n_scalars, batch, heads, tokens].
        """
        batch, heads, tokens, _ = states.shape
        codes = torch.empty(batch, heads, tokens, self.code_size, dtype=torch.uint8, device=states.device)
        scalars = torch.empty(self.n_scalars, batch, heads, tokens, dtype=torch.float16, device=states.device)
        step = max(1, _ROWS // max(1, batch * heads))
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            x = states[:, :, part].float()
            x = x if self.mean is None else x - self.mean
            x = x if self.plan is None else x @ self.plan.weights
            rows, factors = self.encode_rows(x.reshape(-1, self.head_dim))
            codes[:, :, part] = rows.view(batch, heads, -1, self.code_size)
            scalars[:, :, :, part] = factors.view(self.n_scalars, batch, heads, -1).to(torch.float16)
        return codes, scalars

    def encode_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes uint8 [n, code_size] and scalars float32 [n_scalars, n] of rows float32 [n, d].

        Rows have their mean taken off and are multiplied with the weights of their plan.
        """
        root = math.sqrt(self.head_dim)
        norms = x.norm(dim=1)
        sound = norms.isfinite()
        inverse = torch.where(sound & (norms > 0), root / norms, 0.0)
        y = (torch.where(sound[:, None], x, 0.0) * inverse[:, None]) @ self.rotation
        codes, second = self.rows.encode(y)
        scale = norms / root
        if self.scale != "norm":
            decoded = self.rows.decode(codes)
            dots = (y * decoded).sum(dim=1)
            if self.scale == "unbiased":
                factor = self.head_dim / dots
            else:
                factor = dots / decoded.square().sum(dim=1)
            scale = scale * torch.where(dots > 0, factor, 1.0)
        scale = torch.where(sound, scale, torch.nan)
        return codes, scale[None] if second is None else torch.stack([scale, scale * second])

    def decode_rotated(self, codes: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """States in the coded basis, centred, float32 [batch, heads, tokens, d] of what `encode` returned."""
        batch, heads, tokens, _ = codes.shape
        flat = scalars.reshape(self.n_scalars, -1).float()
        states = self.rows.reconstruct(codes.reshape(-1, self.code_size), flat)
        return states.view(batch, heads, tokens, self.head_dim)

    def decode(self, codes: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """States float32 [batch, heads, tokens, d], approximately those that were encoded."""
        states = self.decode_rotated(codes, scalars) @ self.basis.mT
        return states if self.mean is None else states + self.mean
