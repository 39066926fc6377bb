"""What a source can be asked for; one frozen record, so that it can be stored with the results."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SourceOptions"]


@dataclass(frozen=True)
class SourceOptions:
    """Options of every source; each source reads those that concern it.

    Attributes
    ----------
    n, nq : int or None
        At most so many base rows and queries; None keeps what the source has.
    metric : str or None
        "l2", "ip" or "cosine"; None takes the source's own.
    seed : int
        Of every random choice.
    base, queries, held_out, column
        Source `file`: paths, and the column of a parquet file or the dataset of an HDF5 file.
    d, kind
        Source `synthetic`: dimensions, and "isotropic", "clustered" or "uncentred".
    model_id ... device
        Source `qwen`: the model, how its hidden states are pooled, and the text that it reads.
    """

    n: int | None = None
    nq: int | None = None
    metric: str | None = None
    seed: int = 0
    base: str | None = None
    queries: str | None = None
    held_out: str | None = None
    column: str | None = None
    d: int = 256
    kind: str = "isotropic"
    model_id: str = "Qwen/Qwen3-0.6B"
    pooling: str = "mean"
    layer: int = -1
    batch_size: int = 16
    dtype: str = "auto"
    device: str = "auto"
    local_files_only: bool = False
    text_dir: str | None = None
    dataset: str = "Salesforce/wikitext:wikitext-103-raw-v1:train:text"
    max_passages: int = 6000
    max_length: int = 128
    use_cache: bool = True
