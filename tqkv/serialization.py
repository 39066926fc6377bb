"""Caches in files: a prompt that is read once and continued many times.

A file is a safetensors file. Its metadata holds under "tqkv" a JSON object: `version`, `options`, `tables` (the
checksum of the code's tables, without which codes mean nothing), `layers` (for each its `kind` and token counts) and
`checksums` (CRC-32 of every tensor, eight hexadecimal digits). Tensors are named ``layers.INDEX.NAME``; codes are kept
row by row, whatever order the kernel reads them in.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from tqcore.chain import tables_fingerprint
from tqkv.config import CacheOptions
from tqkv.layer import TurboQuantLayer

__all__ = ["CacheFileError", "read_options", "restore_layers", "save_layers"]

_VERSION = 2
_READ = (1, 2)  # 1 had no plans
_KEY = "tqkv"


class CacheFileError(ValueError):
    """The file is not a cache of this library, or it is damaged or of another model."""


def save_layers(layers: list[Any], options: CacheOptions, path: str | os.PathLike[str]) -> None:
    """Write layers and options to a file, complete or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    described = []
    for index, layer in enumerate(layers):
        about, parts = _describe(layer)
        described.append(about)
        tensors |= {
            f"layers.{index}.{name}": part.detach().cpu().contiguous() for name, part in parts.items()
        }
    header = {
        "version": _VERSION,
        "options": asdict(options) | {"skip_layers": sorted(options.skip_layers)},
        "tables": tables_fingerprint(),
        "layers": described,
        "checksums": {name: _checksum(tensor) for name, tensor in tensors.items()},
    }
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, partial, metadata={_KEY: json.dumps(header)})
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Options of a saved cache, as `TurboQuantCache` takes them.

    Raises
    ------
    CacheFileError
        If the file is not a cache, or of a version or of tables that this library does not have.
    """
    options = dict(_header(path)["options"])
    options["bits"] = options["key_bits"]
    return options


def restore_layers(
    layers: list[Any], path: str | os.PathLike[str], device: str | torch.device | Mapping[int, Any]
) -> None:
    """Fill new layers from a file, each on its device.

    Raises
    ------
    CacheFileError
        If layers do not match the file's, or a tensor is damaged.
    """
    header = _header(path)
    kinds, have = [about["kind"] for about in header["layers"]], [_kind(layer) for layer in layers]
    if kinds != have:
        raise CacheFileError(f"config must be that of the saved cache with layers {kinds}, got {have}")
    with safe_open(path, framework="pt") as stream:

        def read(index: int, name: str) -> torch.Tensor | None:
            key = f"layers.{index}.{name}"
            if key not in header["checksums"]:
                return None
            tensor = stream.get_tensor(key)
            if _checksum(tensor) != header["checksums"][key]:
                raise CacheFileError(f"{path} must be undamaged, got another checksum for {key}")
            return tensor.to(device[index] if isinstance(device, Mapping) else device)

        for index, (layer, about) in enumerate(zip(layers, header["layers"], strict=True)):
            _restore(layer, about, lambda name, index=index: read(index, name))


def _header(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as stream:
            header = json.loads((stream.metadata() or {})[_KEY])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CacheFileError(
            f"{path} must be a saved TurboQuantCache, got a file without its header"
        ) from error
    if header.get("version") not in _READ:
        raise CacheFileError(f"version must be {' or '.join(map(str, _READ))}, got {header.get('version')!r}")
    if header["tables"] != tables_fingerprint():
        raise CacheFileError(
            f"tables must be those of this version, {tables_fingerprint()}, got {header['tables']!r}"
        )
    return header


def _kind(layer: Any) -> str:
    if isinstance(layer, TurboQuantLayer):
        return "packed"
    return type(layer).__name__


def _describe(layer: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a layer is, for JSON, and its tensors by name."""
    about: dict[str, Any] = {"kind": _kind(layer)}
    if isinstance(layer, TurboQuantLayer):
        if not layer.is_initialized:
            return about, {}
        return about | {"packed": layer.view().packed}, layer.state()
    parts = {}
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name)
            # One tensor in older releases of transformers, a numbered set in later ones.
            for key, state in states.items() if isinstance(states, dict) else [(0, states)]:
                if state is not None:
                    parts[f"{name}.{key}"] = state
    if isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None:
        parts |= {"keys": layer.keys, "values": layer.values}
        about["length"] = int(layer.get_seq_length())
    return about, parts


def _restore(layer: Any, about: dict[str, Any], read: Callable[[str], torch.Tensor | None]) -> None:
    """Fill one new layer with what `read` returns for a name."""
    if isinstance(layer, TurboQuantLayer):
        if "packed" in about:
            names = (
                f"{side}_{part}"
                for side in ("key", "value")
                for part in ("codes", "scalars", "window", "mean", "weights", "basis")
            )
            state = {name: tensor for name in names if (tensor := read(name)) is not None}
            layer.restore(about["packed"], state)
        return
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for name, update in (
            ("conv_states", layer.update_conv_state),
            ("recurrent_states", layer.update_recurrent_state),
        ):
            index = 0
            while (states := read(f"{name}.{index}")) is not None:
                update(states, state_idx=index)
                index += 1
    keys, values = read("keys"), read("values")
    if isinstance(layer, CacheLayerMixin) and keys is not None and values is not None:
        layer.update(keys, values)
        if hasattr(layer, "cumulative_length"):
            setattr(layer, "cumulative_length", about["length"])  # noqa: B010 - not all layers have it


def _checksum(tensor: torch.Tensor) -> str:
    data = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return f"{zlib.crc32(data):08x}"
