"""Muon: momentum, orthogonalized, for weight matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalized"]

# Coefficients of the quintic iteration of Jordan et al. (2024): singular values end between about 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalized(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices, nearly, by Newton-Schulz iterations.

    Parameters
    ----------
    matrices : Tensor
        [n, rows, columns], rows <= columns.
    rounds : int
        Iterations.

    Returns
    -------
    Tensor
        The same shape and type; singular values are near one.
    """
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x


class Muon:
    """Nesterov momentum, orthogonalized in bfloat16, with decoupled weight decay.

    Matrices of one shape, transposed or not, are handled in one batch.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        Matrices.
    momentum, decay : float
        Momentum; weight decay a step, in units of the learning rate.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], momentum: float = 0.95, decay: float = 0.1
    ) -> None:
        self.momentum, self.decay = momentum, decay
        groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            rows, columns = parameter.shape
            groups.setdefault((min(rows, columns), max(rows, columns)), []).append(parameter)
        self._groups = [
            (members, torch.zeros(len(members), *size, device=members[0].device))
            for size, members in groups.items()
        ]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every matrix at learning rate `rate` and drop its gradient."""
        for members, buffer in self._groups:
            gradients = torch.stack([p.grad.mT if _tall(p) else p.grad for p in members])
            buffer.lerp_(gradients, 1 - self.momentum)
            updates = orthogonalized(gradients.lerp_(buffer, self.momentum).bfloat16()).float()
            for parameter, update in zip(members, updates.unbind(0), strict=True):
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                change = update.mT if _tall(parameter) else update
                parameter.mul_(1 - rate * self.decay).add_(change, alpha=-rate * scale)
                parameter.grad = None


def _tall(parameter: Tensor) -> bool:
    return parameter.shape[0] > parameter.shape[1]
