"""Vector search over compressed codes, with the Index API of FAISS and no training."""

from .files import ConcurrentWriterError, DiskFullError, ReadOnlyPathError
from .filters import SearchParameters
from .format import IndexFileError
from .index import METRIC_INNER_PRODUCT, METRIC_L2, TurboQuantIndex
from .io import read_index, write_index
from .planning import DriftWarning

__version__: str

__all__ = [
    "METRIC_INNER_PRODUCT",
    "METRIC_L2",
    "ConcurrentWriterError",
    "DiskFullError",
    "DriftWarning",
    "IndexFileError",
    "ReadOnlyPathError",
    "SearchParameters",
    "TurboQuantIndex",
    "read_index",
    "write_index",
]


def __getattr__(name: str) -> str:
    # Read on demand: importlib.metadata would double the time that `import tqann` takes.
    if name == "__version__":
        from importlib.metadata import version

        return version("tqann")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
