"""A packed KV cache for transformers models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqkv.cache import TurboQuantCache

__all__ = ["TurboQuantCache"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import tqkv` alone is quick."""
    if name == "TurboQuantCache":
        from tqkv.cache import TurboQuantCache

        return TurboQuantCache
    raise AttributeError(f"module 'tqkv' has no attribute {name!r}")
