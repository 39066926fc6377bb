"""The two sets that travel in the package; `make_sample.py` made them."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from ..errors import BenchError
from .dataset import Dataset
from .options import SourceOptions

__all__ = ["load_sample", "load_sample_lm", "pack_int8", "unpack_int8"]


def pack_int8(x: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as int8 with one float32 step each: float [n, d] -> {"q": int8 [n, d], "step": float32 [n]}."""
    step = (np.abs(x).max(axis=1) / 127).astype(np.float32)
    q = np.rint(x / np.where(step > 0, step, 1)[:, None]).astype(np.int8)
    return {"q": q, "step": step}


def unpack_int8(q: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Unit float32 rows [n, d] of what `pack_int8` made."""
    x = q.astype(np.float32) * step[:, None]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def load_sample(options: SourceOptions) -> Dataset:
    """MiniLM embeddings of Wikipedia passages; real questions as queries."""
    return _load(
        "sample", "all-MiniLM-L6-v2 embeddings of Wikipedia passages, real questions as queries", options
    )


def load_sample_lm(options: SourceOptions) -> Dataset:
    """Mean-pooled hidden states of a small language model: uncentred, hard for data-oblivious codes."""
    return _load(
        "sample-lm", "mean-pooled hidden states of a 15.7 M-parameter language model, uncentred", options
    )


def _load(name: str, description: str, options: SourceOptions) -> Dataset:
    resource = files("tqbench") / "data" / f"{name}.npz"
    if not resource.is_file():
        raise BenchError(f"the embedded set {name!r} is missing from this installation; reinstall tqann")
    with resource.open("rb") as file, np.load(file) as packed:
        parts = {
            part: unpack_int8(packed[f"{part}_q"], packed[f"{part}_step"])
            for part in ("base", "queries", "held_out")
        }
    return Dataset(name=name, description=description, metric="ip", **parts).limited(options)
