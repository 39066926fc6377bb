"""Calibrated plans of keys: for every head a linear map that puts the code's error where queries do not look.

A code of A k errs by a vector of length in proportion to |A k| and of any direction, so logits have the squared error
``c tr(A K A') tr(A^-T Q A^-1)``, K the covariance of keys and Q the second moments of queries. It is least where
B = A'A solves B K B = Q, the geometric mean of K^-1 and Q. With K = L L' and L' Q L = U S U' that is
``A = S^(1/4) U' L^-1``, which balances both sides: A K A' = A^-T Q A^-1 = S^(1/2). The error falls from ``c tr K tr Q``
to ``c (tr S^(1/2))^2``.

Moments of a prompt are not those of what follows, and with them as they are keys added later err more than without a
plan. So four fifths of them are replaced by their diagonal and by a multiple of the identity, and a head has a plan
only if that of the first half of the prompt would have served the second half.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["KeyPlan", "fit_key_plan"]

_SAMPLE = 4096  # tokens that moments are taken of
_DIAGONAL, _ISOTROPIC = 0.4, 0.4  # parts of the moments
_QUERY_POWER = 0.35  # queries not seen are taken to have this power of the keys' covariance
_WORTH = 0.97  # a plan is kept where it leaves less than this of the error


@dataclass(frozen=True)
class KeyPlan:
    """Maps of the keys of one layer, and of queries that meet them.

    Attributes
    ----------
    weights : torch.Tensor
        float32 [heads, d, d], A' of every head: a centred key, a row, times it is what is rotated and coded.
    basis : torch.Tensor
        float32 [heads, d, d], A^-1 R: a query times it has its inner products with coded coordinates, and these times
        its transpose are the key.
    """

    weights: torch.Tensor
    basis: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.weights.nbytes + self.basis.nbytes

    def replace(self, other: KeyPlan) -> KeyPlan:
        """Take the values of another plan, at the same addresses."""
        self.weights.copy_(other.weights)
        self.basis.copy_(other.basis)
        return self


def fit_key_plan(
    keys: torch.Tensor,
    mean: torch.Tensor | None,
    rotation: torch.Tensor,
    queries: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> KeyPlan:
    """The plan of every head from the keys at hand; heads that gain nothing get the rotation alone.

    Parameters
    ----------
    keys : torch.Tensor
        [batch, heads, tokens, d].
    mean : torch.Tensor or None
        float32 [heads, 1, d], taken off before coding.
    rotation : torch.Tensor
        float32 [d, d], R.
    queries : torch.Tensor, optional
        [batch, a multiple of heads, n, d], those of the last tokens. Without them, or with less than d tokens of them,
        queries are taken to look like keys, but less uneven.
    seen : torch.Tensor, optional
        bool [batch, tokens], False for padding.

    Returns
    -------
    KeyPlan
    """
    heads, d = keys.shape[1], keys.shape[3]
    weights = torch.eye(d, device=keys.device).repeat(heads, 1, 1)
    inverse = weights.clone()
    if keys.shape[0] * keys.shape[2] >= 2 * d:
        first, last = _half_moments(keys, heads, mean, seen)
        if queries is None or queries.shape[0] * queries.shape[2] < d:
            asked = (_power(first), _power(last))
        else:
            queries = queries[:, :, -keys.shape[2] :]
            part = None if seen is None else seen[:, -queries.shape[2] :]
            asked = _half_moments(queries, heads, None, part)
        whole, every = (first + last) / 2, (asked[0] + asked[1]) / 2
        sound = torch.stack([whole, every]).isfinite().all(dim=(0, 2, 3))
        a, a_inverse = _balanced(first, asked[0])
        gains = _error(a, whole) * _error(a_inverse.mT, asked[1]) < _WORTH
        a, a_inverse = _balanced(whole, every)
        keep = (gains & sound)[:, None, None]
        weights = torch.where(keep, a.mT.float(), weights)
        inverse = torch.where(keep, a_inverse.float(), inverse)
    return KeyPlan(weights.contiguous(), inverse @ rotation)


def _half_moments(
    states: torch.Tensor, heads: int, mean: torch.Tensor | None, seen: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Second moments float64 [heads, d, d] about `mean` of the earlier and of the later tokens, their trace made d."""
    step = -(-states.shape[0] * states.shape[2] // _SAMPLE)
    states = states[:, :, ::step]
    if seen is not None:
        seen = seen[:, ::step]
    half, moments = states.shape[2] // 2, []
    for part in (slice(0, half), slice(half, None)):
        x = states[:, :, part].float()
        x = x if mean is None else x - mean
        if seen is not None:
            x = torch.where(seen[:, None, part, None], x, 0.0)
        batch, _, tokens, d = x.shape
        rows = x.reshape(batch, heads, -1, tokens, d).transpose(0, 1).reshape(heads, -1, d)
        moment = (rows.mT @ rows).double()
        trace = moment.diagonal(dim1=1, dim2=2).sum(1)
        moments.append(moment * (d / trace)[:, None, None])
    return moments[0], moments[1]


def _shrunk(moments: torch.Tensor) -> torch.Tensor:
    """Moments of trace d, nearer to their diagonal and to the identity; the identity where they are not finite."""
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    mixed = (1 - _DIAGONAL - _ISOTROPIC) * moments + _DIAGONAL * moments * eye + _ISOTROPIC * eye
    return torch.where(moments.isfinite().all(dim=(1, 2), keepdim=True), mixed, eye)


def _power(moments: torch.Tensor) -> torch.Tensor:
    """What second moments of queries are taken to be where only those of keys are known."""
    values, vectors = torch.linalg.eigh(_shrunk(moments))
    powers = values**_QUERY_POWER
    powers = powers / powers.mean(dim=1, keepdim=True)
    return vectors * powers[:, None] @ vectors.mT


def _balanced(keys: torch.Tensor, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A and its inverse [heads, d, d] for moments of keys and queries; A leaves the mean squared length of keys."""
    lower = torch.linalg.cholesky(_shrunk(keys))
    values, vectors = torch.linalg.eigh(lower.mT @ _shrunk(queries) @ lower)
    fourth = (values**0.25 / values.sqrt().mean(dim=1, keepdim=True).sqrt())[:, None]
    # U' L^-1 is the transpose of what solves L' X = U.
    left = torch.linalg.solve_triangular(lower.mT, vectors * fourth, upper=True)
    return left.mT, lower @ (vectors / fourth)


def _error(a: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Mean squared length [heads] of vectors of these moments, of trace d, times `a`."""
    return (a @ moments * a).sum(dim=(1, 2)) / moments.shape[-1]
