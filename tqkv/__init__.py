"""A packed KV cache for transformers models: `TurboQuantCache`, and the attention function that reads it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqkv.attention import register
    from tqkv.cache import TurboQuantCache

__all__ = ["TurboQuantCache", "register"]

_MODULES = {"TurboQuantCache": "tqkv.cache", "register": "tqkv.attention"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import tqkv` needs neither torch nor transformers."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tqkv' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("torch", "transformers", "safetensors"):
            raise ImportError(f"tqkv needs {package}: pip install 'tqann[kv]'", name=package) from error
        raise
