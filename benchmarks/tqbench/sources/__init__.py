"""Sources of vectors by name; each yields one Dataset."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import BenchError
from .options import SourceOptions

if TYPE_CHECKING:
    from .dataset import Dataset

__all__ = ["SOURCES", "SourceOptions", "load_source"]

# name -> (module, function, what it is)
SOURCES: dict[str, tuple[str, str, str]] = {
    "sample": ("embedded", "load_sample", "8,000 sentence embeddings of Wikipedia passages (in the package)"),
    "sample-lm": (
        "embedded",
        "load_sample_lm",
        "uncentred hidden states of a language model (in the package)",
    ),
    "qwen": ("hidden_states", "load_hidden_states", "hidden states of any Hugging Face causal LM"),
    "file": ("files", "load_file", "your vectors: npy, fvecs, bvecs, ivecs, HDF5, parquet"),
    "digits": ("generated", "load_digits", "scikit-learn's 8 x 8 digit images, d = 64"),
    "synthetic": (
        "generated",
        "load_synthetic",
        "seeded Gaussian vectors: isotropic, clustered or uncentred",
    ),
}


def load_source(name: str, options: SourceOptions) -> Dataset:
    """Load a source by name.

    Raises
    ------
    BenchError
        For an unknown name, and for whatever a source is missing.
    """
    if name not in SOURCES:
        raise BenchError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    module, function, _ = SOURCES[name]
    return getattr(import_module(f"{__name__}.{module}"), function)(options)
