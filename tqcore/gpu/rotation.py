"""Norms and the Hadamard rotation on CUDA, bit for bit those of the CPU."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import numpy as np
import torch

from tqcore.gpu.rtc import Kernel, Long, compile_module

__all__ = ["MAX_ROTATED", "hadamard_rotate", "normalize", "sign_words"]

MAX_ROTATED = 40960  # dimensions whose row fits the shared memory of one block


@lru_cache(maxsize=1)
def _source() -> str:
    return files("tqcore.gpu").joinpath("rotation.cu").read_text()


def _kernel() -> Kernel:
    return compile_module(_source()).kernel("rotate")


def sign_words(signs: np.ndarray) -> torch.Tensor:
    """int32 [3, 2, ceil(d / 32)] on the host, a bit for each -1 of signs float32 [3, 2, d]."""
    packed = np.packbits(signs < 0, axis=2, bitorder="little")
    padded = np.pad(packed, ((0, 0), (0, 0), (0, -packed.shape[2] % 4)))
    return torch.from_numpy(padded.view(np.int32))


def normalize(x: torch.Tensor, signs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of squared length d, rotated if there are signs, and the norms that they had.

    Parameters
    ----------
    x : torch.Tensor
        float32 [n, d] on a CUDA device.
    signs : torch.Tensor, optional
        `sign_words` of the rotation, on the device.

    Returns
    -------
    y : torch.Tensor
        float32 [n, d].
    norms : torch.Tensor
        float64 [n].

    Raises
    ------
    ValueError
        If d is above `MAX_ROTATED`.
    """
    norms = torch.empty(len(x), dtype=torch.float64, device=x.device)
    return _launch(x, signs, False, norms), norms


def hadamard_rotate(y: torch.Tensor, signs: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Rotated rows, a new float32 [n, d], of float32 [n, d] on a CUDA device; or what `inverse` takes back."""
    return _launch(y, signs, inverse, None)


def _launch(
    x: torch.Tensor, signs: torch.Tensor | None, inverse: bool, norms: torch.Tensor | None
) -> torch.Tensor:
    n, d = x.shape
    if d > MAX_ROTATED:
        raise ValueError(f"d must be at most {MAX_ROTATED} on a CUDA device, got {d}")
    x = x.contiguous()
    out = torch.empty_like(x)
    if n:
        p = 1 << (d.bit_length() - 1)
        c, half_root = float(np.float32(1 / np.sqrt(p))), float(np.float32(np.sqrt(0.5)))
        with torch.cuda.device(x.device):
            _kernel()(
                (min(n, 1 << 16),),
                (min(1024, max(32, p // 4)),),
                (x, Long(n), d, p, c, half_root, signs, inverse, norms, out),
                shared=4 * (d + d // 8 + 6 * -(-d // 32)),
            )
    return out
