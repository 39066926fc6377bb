"""Models that the suites measure: the probe, or any causal language model of transformers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BenchError
from .options import KVOptions

__all__ = ["LoadedModel", "load_config", "load_model"]

_RANDOM, _TINY = "random:", "tiny-"
_WITHOUT_WEIGHTS = ("throughput", "attention", "memory")  # suites that no answer of the model matters to
_EXTRA = "pip install 'tqann[bench,kv]'"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, its tokenizer, its name and one line on what it is."""

    model: Any
    tokenizer: Any
    name: str
    description: str

    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ between weights: a hash over a part of every parameter."""
        import torch

        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            part = value.detach().flatten()[:64].to(torch.float32).cpu().numpy()
            digest.update(f"{name} {tuple(value.shape)}".encode() + part.tobytes())
        return digest.hexdigest()[:16]


def load_model(options: KVOptions) -> LoadedModel:
    """The model that `options` names.

    Raises
    ------
    BenchError
        When a package, the weights or the device is missing; the message says how to get it.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        import tqkv.cache  # noqa: F401 - registers the attention that reads packed states
    except ImportError as error:
        raise BenchError(f"tq bench kv needs {error.name}, which is not installed: {_EXTRA}") from error
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchError(f"device must be one that is there, got {device!r} without a CUDA device")
    named = options.dtype
    if named == "auto":
        named = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = getattr(torch, named)
    attention = "turboquant" if options.attn_implementation == "auto" else options.attn_implementation
    if options.model_id == "probe":
        from .probe import load_probe

        probe, tokenizer = load_probe(dtype, device, attention)
        what = "the probe, a small model trained for these benchmarks"
        return LoadedModel(probe, tokenizer, "probe", f"{what} ({_size(probe)}, {named})")
    if options.model_id.startswith(_RANDOM):
        return _random(options, torch.device(device), dtype, attention)
    arguments = {"local_files_only": options.local_files_only}
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model_id, **arguments)
        model: Any = AutoModelForCausalLM.from_pretrained(
            options.model_id,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            **arguments,
        )
    except (OSError, ValueError) as error:
        raise _missing(options.model_id, error) from error
    name = Path(options.model_id).name
    return LoadedModel(model.to(device).eval(), tokenizer, name, f"{name} ({_size(model)}, {named})")


def load_config(options: KVOptions) -> Any:
    """The configuration of the model that `options` names, without weights; BenchError when it cannot be had."""
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise BenchError(f"tq bench kv needs {error.name}, which is not installed: {_EXTRA}") from error
    if options.model_id == "probe":
        from .probe import probe_folder

        return AutoConfig.from_pretrained(str(probe_folder()))
    if options.model_id.startswith(_RANDOM):
        from .random_weights import random_config

        return random_config(*_random_name(options.model_id))
    try:
        return AutoConfig.from_pretrained(options.model_id, local_files_only=options.local_files_only)
    except (OSError, ValueError) as error:
        raise _missing(options.model_id, error) from error


def _random_name(model_id: str) -> tuple[str, bool]:
    """Name of `MODELS` and whether a tiny model of its kind is meant."""
    from .random_weights import MODELS

    name = model_id.removeprefix(_RANDOM)
    tiny = name.startswith(_TINY)
    name = name.removeprefix(_TINY)
    if name not in MODELS:
        known = ", ".join(f"{_RANDOM}{one}" for one in MODELS)
        raise BenchError(f"model_id must be one of {known} (or {_RANDOM}{_TINY}...), got {model_id!r}")
    return name, tiny


def _random(options: KVOptions, device: Any, dtype: Any, attention: str) -> LoadedModel:
    if options.suite not in _WITHOUT_WEIGHTS:
        raise BenchError(f"suite {options.suite} needs trained weights, got model_id {options.model_id!r}")
    from .random_weights import random_model

    model: Any = random_model(*_random_name(options.model_id), device)
    model = model.to(dtype)
    model.set_attn_implementation(attention)
    name = options.model_id.replace(":", "-")
    named = str(dtype).removeprefix("torch.")
    return LoadedModel(model, None, name, f"{name} ({_size(model)}, {named})")


def _missing(model_id: str, error: Exception) -> BenchError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BenchError(
        f"the model {model_id!r} cannot be loaded ({first}); download it where there is a network with "
        f"`hf download {model_id}`, give a local folder with --model-id FOLDER, or use --model-id probe"
    )


def _size(model: Any) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
